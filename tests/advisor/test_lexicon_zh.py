"""Facts of Chinese sentences, simplified and traditional, written down before the lexicon was tried on them."""

import pytest

from align.advisor.text import read

SAYS = [
    # how many, of what
    ("我们有三千二百条专家撰写的问答。", "data.sft_pairs.rows", 3200, "asserted"),
    ("手头攒了1.2万封往来邮件和客服最终发出的回信。", "data.sft_pairs.rows", 12000, "asserted"),
    ("历年积累了两万多份医生签过字的出院小结和对应的病程记录。", "data.sft_pairs.rows", 20000, "asserted"),
    ("资深编辑逐条改好的译稿有4800篇。", "data.sft_pairs.rows", 4800, "asserted"),
    ("我们整理了近万条输入输出示例。", "data.sft_pairs.rows", 10000, "asserted"),
    ("只有上千条人工标好类别的工单。", "data.sft_pairs.rows", 1000, "asserted"),
    ("同一个问题给两个答案，由专家挑出更合适的，共1.5万组。", "data.preference_pairs.rows", 15000, "asserted"),
    ("编辑在两个标题里选一个，记录了八千六百次选择。", "data.preference_pairs.rows", 8600, "asserted"),
    ("有3万对chosen/rejected数据。", "data.preference_pairs.rows", 30000, "asserted"),
    ("每条译文都有A、B两稿，审校标了哪一稿胜出，一共22000例。", "data.preference_pairs.rows", 22000, "asserted"),
    ("用户给单条回复点了四十多万个赞和踩。", "data.unpaired_feedback.rows", 400000, "asserted"),
    ("坐席对每条建议点采纳或不采纳，半年下来有9.5万条记录。", "data.unpaired_feedback.rows", 95000, "asserted"),
    ("后台存了十八万次“满意/不满意”的点击，每次只针对一个回答。", "data.unpaired_feedback.rows", 180000, "asserted"),
    ("题库里有两万四千道题，只给最终答案，没有解题步骤。", "data.prompts.rows", 24000, "asserted"),
    ("9000个编程任务，全部带隐藏测试，没有参考代码。", "data.prompts.rows", 9000, "asserted"),
    (
        "准备了1.1万条需求描述，生成的配置丢进模拟器就能知道行不行，但没有现成的配置。",
        "data.prompts.rows",
        11000,
        "asserted",
    ),
    ("公司内部文件共八千五百份。", "data.documents.docs", 8500, "asserted"),
    ("知识库里大约有6.5万篇帮助文章。", "data.documents.docs", 65000, "asserted"),
    ("维修手册一共四万多页。", "data.documents.docs", 40000, "asserted"),
    ("我们有50亿token的行业语料。", "data.corpus.tokens", 5_000_000_000, "asserted"),
    ("清洗去重之后剩下3.5B tokens。", "data.corpus.tokens", 3_500_000_000, "asserted"),
    ("全部资料加起来才一千五百万token。", "data.corpus.tokens", 15_000_000, "asserted"),
    ("十几亿词元的化工文献，网上都没有。", "data.corpus.tokens", 1_300_000_000, "asserted"),
    ("服务器上有120GB的航运文本。", "data.corpus.bytes", 120_000_000_000, "asserted"),
    ("日志文本有2TB。", "data.logs.bytes", 2_000_000_000_000, "asserted"),
    ("留了400条不参与训练，专门用来打分。", "evals.held_out_rows", 400, "asserted"),
    ("另外保留了六百个案例做测试。", "evals.held_out_rows", 600, "asserted"),
    ("手里没有任何样例。", "data.sft_pairs", False, "asserted"),
    ("标注数据一条都没有。", "data.sft_pairs", False, "asserted"),
    ("训练数据为零。", "data.sft_pairs", False, "asserted"),
    # rules
    ("每份报告要同时满足三十二条规范。", "behaviour.rules_count", 32, "asserted"),
    ("书写规定总共有27项，缺一不可。", "behaviour.rules_count", 27, "asserted"),
    ("要求有两个：一是必须用敬语，二是不谈价格。", "behaviour.rules_count", 2, "asserted"),
    ("规则如下：第一，不许承诺收益；第二，不评价同行；第三，结尾附热线。", "behaviour.rules_count", 3, "asserted"),
    ("要求：1、用中文回答；2、不超过100字；3、不带表情。", "behaviour.rules_count", 3, "asserted"),
    ("必须做到：①不报价②不骂人③不聊政治。", "behaviour.rules_count", 3, "asserted"),
    # scores
    ("优化提示词之后合格率只有六成，目标是九成。", "evals.baseline", 0.6, "asserted"),
    ("优化提示词之后合格率只有六成，目标是九成。", "evals.target", 0.9, "asserted"),
    ("目前准确率是百分之七十二，要达到百分之九十。", "evals.baseline", 0.72, "asserted"),
    ("目前准确率是百分之七十二，要达到百分之九十。", "evals.target", 0.9, "asserted"),
    ("希望把F1从0.6提到0.8。", "evals.baseline", 0.6, "asserted"),
    ("希望把F1从0.6提到0.8。", "evals.target", 0.8, "asserted"),
    ("想把一次通过率从58%提高到85%。", "evals.baseline", 0.58, "asserted"),
    ("想把一次通过率从58%提高到85%。", "evals.target", 0.85, "asserted"),
    ("现在八成五的单子能一次做对。", "evals.baseline", 0.85, "asserted"),
    ("光靠提示词，全部达标的不到一半。", "behaviour.prompt_falls_short", True, "asserted"),
    ("提示词反复打磨过，还是经常漏项。", "behaviour.prompt_falls_short", True, "asserted"),
    ("提示词已经写到三千字了，效果依然不理想。", "behaviour.prompt_falls_short", True, "asserted"),
    # knowledge
    ("航班动态随时在变。", "knowledge.changes", "realtime", "asserted"),
    ("菜单每天都会调整。", "knowledge.changes", "daily", "asserted"),
    ("制度文件每隔一周就有修订。", "knowledge.changes", "weekly", "asserted"),
    ("资费每月一调。", "knowledge.changes", "monthly", "asserted"),
    ("课程目录每学年改一次。", "knowledge.changes", "yearly", "asserted"),
    ("这些档案不再变动。", "knowledge.changes", "never", "asserted"),
    ("回答里要写清楚出自哪份文件的第几页。", "knowledge.needs_citations", True, "asserted"),
    ("每个结论都得能追到原文。", "knowledge.needs_citations", True, "asserted"),
    ("不用标出处。", "knowledge.needs_citations", True, "negated"),
    ("不同级别的员工能看到的文件不一样。", "knowledge.per_user", True, "asserted"),
    ("每个租户的资料互相不可见。", "knowledge.per_user", True, "asserted"),
    ("通用模型完全看不明白我们的行话。", "knowledge.unseen_domain", True, "asserted"),
    ("市面上的模型对这门语言基本一无所知。", "knowledge.unseen_domain", True, "asserted"),
    ("员工想问内部的报销流程，希望机器人能答上来。", "data.documents", True, "asserted"),
    # scorers
    ("写个脚本就能检查答案对不对。", "reward.kind", "verifier", "asserted"),
    ("SQL跑出来和标准结果一比就知道对错。", "reward.kind", "verifier", "asserted"),
    ("已经训好了一个奖励模型。", "reward.kind", "reward_model", "asserted"),
    ("打算让GPT来当评委打分。", "reward.kind", "llm_judge", "asserted"),
    ("好不好全凭感觉，没法自动打分。", "reward.kind", "none", "asserted"),
    # constraints and cards
    ("数据一律不能出公司。", "constraints.on_prem", True, "asserted"),
    ("必须部署在客户自己的机房里。", "constraints.on_prem", True, "asserted"),
    ("材料里有客户的身份证号和住址。", "constraints.regulated", True, "asserted"),
    ("我们用的是商用API，动不了权重。", "constraints.weights_frozen", True, "asserted"),
    ("有8卡A100的机器。", "hardware.gpus", 8, "asserted"),
    ("手上有四张4090。", "hardware.gpus", 4, "asserted"),
    ("算力是8×80G。", "hardware.gpus", 8, "asserted"),
    ("算力是8×80G。", "hardware.memory_gb", 80, "asserted"),
    ("有两台八卡机。", "hardware.gpus", 16, "asserted"),
    ("一台8卡H800服务器。", "hardware.gpus", 8, "asserted"),
    ("只有一张24G的显卡。", "hardware.gpus", 1, "asserted"),
    ("没有显卡。", "hardware.gpus", 0, "asserted"),
    ("底座用的是720亿参数的模型。", "model.params_b", 72, "asserted"),
    ("基于Qwen2.5-14B做。", "model.params_b", 14, "asserted"),
    # methods, and who wishes them
    ("领导要求做RLHF。", "requested", "rlhf", "attributed"),
    ("供应商推荐我们做微调。", "requested", "post_training", "attributed"),
    ("同事提议用DPO。", "requested", "dpo", "attributed"),
    ("我们想用GRPO继续训。", "requested", "grpo", "asserted"),
    ("不打算做微调。", "requested", "post_training", "negated"),
    ("去年已经微调过一次，效果不好。", "tried.fine_tuning", True, "tried"),
    ("接了RAG之后还是答错。", "tried.rag", True, "tried"),
    # traditional characters
    ("我們有三萬兩千筆人工標註的對話。", "data.sft_pairs.rows", 32000, "asserted"),
    ("沒有任何標註資料。", "data.sft_pairs", False, "asserted"),
    ("內部規章約有九千份，每週都會更新。", "data.documents.docs", 9000, "asserted"),
    ("內部規章約有九千份，每週都會更新。", "knowledge.changes", "weekly", "asserted"),
    ("回答時必須註明出處與條號。", "knowledge.needs_citations", True, "asserted"),
    ("清洗後的語料大約四十億個token，通用模型幾乎看不懂。", "data.corpus.tokens", 4_000_000_000, "asserted"),
    ("清洗後的語料大約四十億個token，通用模型幾乎看不懂。", "knowledge.unseen_domain", True, "asserted"),
    ("使用者按了二十六萬次讚或倒讚。", "data.unpaired_feedback.rows", 260000, "asserted"),
    ("主管說要做強化學習。", "requested", "rlhf", "attributed"),
    ("提示詞怎麼調都只有七成正確。", "evals.baseline", 0.7, "asserted"),
    ("資料不能離開公司內網。", "constraints.on_prem", True, "asserted"),
    ("四張顯示卡，每張記憶體48G。", "hardware.gpus", 4, "asserted"),
]


@pytest.mark.parametrize(("sentence", "field", "value", "status"), SAYS)
def test_a_sentence_says(sentence: str, field: str, value: object, status: str) -> None:
    """Each sentence gives its fact, with the status it is spoken in, quoted as it is written."""
    found = [e for e in read(sentence).evidence if e.field == field and e.value == value]
    assert status in [e.status for e in found], [(e.field, e.value, e.status) for e in read(sentence).evidence]
    assert all(e.span and sentence[e.span[0] : e.span[1]] == e.quote for e in found)
