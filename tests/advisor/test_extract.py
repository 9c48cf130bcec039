"""What English sentences say, written down before the lexicon was tried on them."""

import pytest

from align.advisor.text import read

SAYS = [
    # how many, of what
    ("We have 6,200 tickets, each tagged with the team that finally solved it.", "data.sft_pairs.rows", 6200, "asserted"),
    ("Our annotators produced about twelve thousand question-SQL pairs.", "data.sft_pairs.rows", 12000, "asserted"),
    ("There's a spreadsheet of 850 prompts with the ideal reply next to each.", "data.sft_pairs.rows", 850, "asserted"),
    ("The team wrote 3.4k reference summaries by hand.", "data.sft_pairs.rows", 3400, "asserted"),
    ("40k invoices were keyed in by clerks, so we have the fields for all of them.", "data.sft_pairs.rows", 40000, "asserted"),
    ("Examples: 1,150 (input and gold output).", "data.sft_pairs.rows", 1150, "asserted"),
    ("We collected 7,300 conversations that senior agents corrected.", "data.sft_pairs.rows", 7300, "asserted"),
    ("Data on hand: roughly two thousand five hundred labelled emails.", "data.sft_pairs.rows", 2500, "asserted"),
    ("Editors compared two drafts side by side 15,000 times and marked the winner.", "data.preference_pairs.rows", 15000, "asserted"),
    ("8,400 cases where our raters preferred one answer over the other.", "data.preference_pairs.rows", 8400, "asserted"),
    ("We've 22k chosen/rejected pairs from last year's campaign.", "data.preference_pairs.rows", 22000, "asserted"),
    ("For 5k questions we know which of the two replies the customer liked better.", "data.preference_pairs.rows", 5000, "asserted"),
    ("Users gave 310,000 thumbs, mostly up.", "data.unpaired_feedback.rows", 310000, "asserted"),
    ("We store 60k answers flagged helpful or not helpful.", "data.unpaired_feedback.rows", 60000, "asserted"),
    ("About 75,000 star ratings on single replies have piled up.", "data.unpaired_feedback.rows", 75000, "asserted"),
    ("12k coding exercises with unit tests but without solutions.", "data.prompts.rows", 12000, "asserted"),
    ("We can export 9,000 user prompts, no answers.", "data.prompts.rows", 9000, "asserted"),
    ("The corpus is 3.1 billion tokens of ship logs.", "data.corpus.tokens", 3_100_000_000, "asserted"),
    ("Text: 640M tokens after deduplication.", "data.corpus.tokens", 640_000_000, "asserted"),
    ("Corpus size is 7e9 tokens.", "data.corpus.tokens", 7_000_000_000, "asserted"),
    ("There are 300 policies and roughly 2,000 pages of procedures.", "data.documents.docs", 2000, "asserted"),
    ("The knowledge base has 14,600 articles.", "data.documents.docs", 14600, "asserted"),
    ("Some 90 GB of raw call transcripts sit on a disk.", "data.logs.bytes", 90_000_000_000, "asserted"),
    ("We held back 400 cases for testing.", "evals.held_out_rows", 400, "asserted"),
    ("The test set has 1,200 questions.", "evals.held_out_rows", 1200, "asserted"),
    ("No labelled data exists.", "data.sft_pairs", False, "asserted"),
    ("We don't have any examples of good answers.", "data.sft_pairs", False, "asserted"),
    ("Training data: none.", "data.sft_pairs", False, "asserted"),
    ("There are zero annotated samples so far.", "data.sft_pairs", False, "asserted"),
    ("We plan to label 3,000 examples in spring.", "data.sft_pairs.rows", 3000, "planned"),
    # rules
    ("Each report has to satisfy 31 checks at once.", "behaviour.rules_count", 31, "asserted"),
    ("The style guide lists forty-two requirements.", "behaviour.rules_count", 42, "asserted"),
    ("There are just three rules it must follow.", "behaviour.rules_count", 3, "asserted"),
    ("Every message must meet two dozen constraints.", "behaviour.rules_count", 24, "asserted"),
    ("We extract a record with 27 fields.", "behaviour.rules_count", 27, "asserted"),
    # knowledge
    ("Prices change several times a day.", "knowledge.changes", "daily", "asserted"),
    ("New bulletins come in every week.", "knowledge.changes", "weekly", "asserted"),
    ("The catalogue is updated monthly.", "knowledge.changes", "monthly", "asserted"),
    ("Stock levels move every few seconds.", "knowledge.changes", "realtime", "asserted"),
    ("The handbook gets a new edition once a year.", "knowledge.changes", "yearly", "asserted"),
    ("The archive is closed and will never change.", "knowledge.changes", "never", "asserted"),
    ("Every answer needs a link to the page it was taken from.", "knowledge.needs_citations", True, "asserted"),
    ("Users insist on seeing the source.", "knowledge.needs_citations", True, "asserted"),
    ("Auditors require that each statement cites the regulation.", "knowledge.needs_citations", True, "asserted"),
    ("Citations are not needed.", "knowledge.needs_citations", True, "negated"),
    ("We do not need sources in the answers.", "knowledge.needs_citations", True, "negated"),
    ("Employees may only see documents of their own department.", "knowledge.per_user", True, "asserted"),
    ("What a user is allowed to see depends on his role.", "knowledge.per_user", True, "asserted"),
    ("No open model understands our internal notation.", "knowledge.unseen_domain", True, "asserted"),
    ("Base models have hardly seen any text in this dialect.", "knowledge.unseen_domain", True, "asserted"),
    ("The vocabulary is completely foreign to current LLMs.", "knowledge.unseen_domain", True, "asserted"),
    ("It should answer staff questions from our maintenance manuals.", "data.documents", True, "asserted"),
    ("We want a bot that answers questions about our internal policies.", "data.documents", True, "asserted"),
    ("People should be able to ask things about our contracts.", "data.documents", True, "asserted"),
    ("The domain pre-training was completed last month.", "knowledge.pretraining_done", True, "asserted"),
    # scores
    ("A simulator tells us whether the plan works.", "reward.kind", "verifier", "asserted"),
    ("We can run the generated query and compare the rows.", "reward.kind", "verifier", "asserted"),
    ("Correctness is checked automatically by a script.", "reward.kind", "verifier", "asserted"),
    ("We trained a reward model on our raters' choices.", "reward.kind", "reward_model", "asserted"),
    ("GPT-4 grades the answers on a five-point scale.", "evals.judge", "model", "asserted"),
    ("There is no way to score an answer.", "reward.kind", "none", "asserted"),
    ("Nothing can tell a good poem from a bad one automatically.", "reward.kind", "none", "asserted"),
    # shares, time, money, machines
    ("With the best prompt we're at 62% accuracy and the business wants 90%.", "evals.baseline", 0.62, "asserted"),
    ("With the best prompt we're at 62% accuracy and the business wants 90%.", "evals.target", 0.9, "asserted"),
    ("The prompt gets 71 out of 100 right; we need at least 95 percent.", "evals.target", 0.95, "asserted"),
    ("The prompt gets 71 out of 100 right; we need at least 95 percent.", "evals.baseline", 0.71, "asserted"),
    ("Replies must arrive within 800 ms.", "constraints.latency_s", 0.8, "asserted"),
    ("Answers may take up to 30 seconds.", "constraints.latency_s", 30, "asserted"),
    ("We have a budget of $12,000.", "constraints.budget_usd", 12000, "asserted"),
    ("There is no money: the budget is zero.", "constraints.budget_usd", 0, "asserted"),
    ("It has to be live in six weeks, that's the deadline.", "constraints.deadline_days", 42, "asserted"),
    ("About 2,000 requests per day.", "constraints.requests_per_day", 2000, "asserted"),
    ("We have a node with 8 A100s.", "hardware.gpus", 8, "asserted"),
    ("Hardware: 2x H100 80GB.", "hardware.gpus", 2, "asserted"),
    ("Hardware: 2x H100 80GB.", "hardware.memory_gb", 80, "asserted"),
    ("There's a single 24 GB card in the workstation.", "hardware.memory_gb", 24, "asserted"),
    ("four nodes of eight H200 each are ours", "hardware.gpus", 32, "asserted"),
    ("We own no GPUs.", "hardware.gpus", 0, "asserted"),
    ("The model is Llama-3.1-8B-Instruct.", "model.params_b", 8, "asserted"),
    ("We start from a 70 billion parameter model.", "model.params_b", 70, "asserted"),
    ("It is a base model that has never been instruction-tuned.", "model.type", "base", "asserted"),
    ("We want to do full fine-tuning.", "training.tuning", "full", "asserted"),
    # wishes, attempts, what must hold
    ("Please set up GRPO for us.", "requested", "grpo", "asserted"),
    ("We would like to fine-tune a model.", "requested", "post_training", "asserted"),
    ("My manager says we should do RLHF.", "requested", "rlhf", "attributed"),
    ("A consultant proposed continued pre-training.", "requested", "continual_pretraining", "attributed"),
    ("We tried few-shot prompting without success.", "tried.few_shot", True, "tried"),
    ("RAG was tried and did not help.", "tried.rag", True, "tried"),
    ("Nobody has tried a prompt yet.", "tried.prompting", True, "negated"),
    ("Data must not leave our premises.", "constraints.on_prem", True, "asserted"),
    ("The records contain patients' names.", "constraints.regulated", True, "asserted"),
    ("We are not allowed to change the model's weights.", "constraints.weights_frozen", True, "asserted"),
    ("Labels were produced by a larger language model.", "data.sft_pairs.labelled_by", "model", "asserted"),
    ("Some of the training questions also appear in the benchmark.", "data.sft_pairs.overlaps_evals", True, "asserted"),
    ("Even with a very long prompt it keeps forgetting half of the instructions.", "behaviour.prompt_falls_short", True, "asserted"),
    ("The replies should sound like our brand.", "behaviour.style_or_persona", True, "asserted"),
    ("Output must be valid JSON.", "behaviour.output_format", "strict_schema", "asserted"),
    ("It has to pick the right tool out of 40.", "behaviour.target_capability", "function_calling", "asserted"),
    ("It should sort incoming mail into one of 60 categories.", "behaviour.target_capability", "classification", "asserted"),
    ("We need better SQL from natural language.", "behaviour.target_capability", "sql", "asserted"),
]  # fmt: skip

SAYS_NOT = [
    ("The case number is 4711 and the ticket is AI-2207.", "data.sft_pairs.rows"),
    ("We use version 4.3 on port 8443.", "behaviour.rules_count"),
    ("Recall@5 is what we look at.", "data.prompts.rows"),
    ("Rate it on a 1-to-5 scale.", "behaviour.rules_count"),
    ("Documents are split into chunks of 1000 characters.", "data.documents.docs"),
    ("The prompt is a 2,000-token cheat sheet.", "data.corpus.tokens"),
    ("Completions are up to 2k tokens.", "data.corpus.tokens"),
    ("CVE-2024-3094 hit us in March 2024.", "data.prompts.rows"),
    ("We have an RTX 3060.", "data.sft_pairs.rows"),
    ("We trained on 7B tokens.", "model.params_b"),
    ("The 7B model is fine.", "data.corpus.tokens"),
    ("Founded in 1974, we have 212 staff and 19 branches.", "data.documents.docs"),
    ("We get 12 000 parcels a day.", "data.documents.docs"),
    ("The office is at 10:30 open, ratio 9:1.", "behaviour.rules_count"),
    ("Traffic grew by 40% last year.", "evals.baseline"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "value", "status"), SAYS)
def test_says(text: str, field: str, value: object, status: str) -> None:
    said = [(e.field, e.value, e.status) for e in read(text).evidence]
    assert (field, value, status) in said or (value is False and (field, True, "negated") in said)


@pytest.mark.parametrize(("text", "field"), SAYS_NOT)
def test_says_not(text: str, field: str) -> None:
    assert field not in [e.field for e in read(text).evidence]
