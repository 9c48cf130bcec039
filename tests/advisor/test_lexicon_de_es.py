"""Facts of German and Spanish sentences, written down before the lexicons were tried on them."""

import pytest

from align.advisor.text import read

SAYS = [
    # German: how many, of what
    (
        "Wir haben rund 4.200 Frage-Antwort-Paare, die unsere Fachleute freigegeben haben.",
        "data.sft_pairs.rows", 4200, "asserted",
    ),
    ("Es liegen 12.500 Tickets mit der richtigen Kategorie vor.", "data.sft_pairs.rows", 12500, "asserted"),
    ("In der Ablage stehen etwa 850 Arbeitsanweisungen als PDF.", "data.documents.docs", 850, "asserted"),
    (
        "Bei 18 Tsd. Anfragen wurde jeweils die bessere von zwei Antworten markiert.",
        "data.preference_pairs.rows", 18000, "asserted",
    ),
    ("Die Nutzer haben 90.000 Daumen vergeben, hoch oder runter.", "data.unpaired_feedback.rows", 90000, "asserted"),
    (
        "Wir haben 6.400 Aufgaben ohne Lösungsweg, ein Skript prüft das Endergebnis.",
        "data.prompts.rows", 6400, "asserted",
    ),
    ("Unser Archiv umfasst 2,4 Mrd. Tokens Fachtexte.", "data.corpus.tokens", 2_400_000_000, "asserted"),
    ("Wir haben eine halbe Million Sätze, das sind 12 Mio. Tokens.", "data.corpus.tokens", 12_000_000, "asserted"),
    ("Jedes Schreiben muss siebenundzwanzig Vorgaben gleichzeitig einhalten.", "behaviour.rules_count", 27, "asserted"),
    ("Der Bescheid braucht 14 Pflichtangaben.", "behaviour.rules_count", 14, "asserted"),
    ("Beispiele haben wir keine.", "data.sft_pairs", False, "asserted"),
    ("Es gibt bei uns keinerlei gelabelte Daten.", "data.sft_pairs", False, "asserted"),
    ("Für die Prüfung haben wir 350 Fälle zurückgelegt.", "evals.held_out_rows", 350, "asserted"),
    # German: knowledge
    ("Die Preise ändern sich jeden Morgen und die Kunden fragen danach.", "knowledge.changes", "daily", "asserted"),
    ("Die Richtlinien werden einmal im Jahr überarbeitet.", "knowledge.changes", "yearly", "asserted"),
    ("Der Bestand ist abgeschlossen, da kommt nichts mehr hinzu.", "knowledge.changes", "never", "asserted"),
    ("Jede Auskunft muss den Paragrafen nennen, auf dem sie beruht.", "knowledge.needs_citations", True, "asserted"),
    ("Quellenangaben brauchen wir nicht.", "knowledge.needs_citations", True, "negated"),
    ("Je nach Rolle darf ein Mitarbeiter nur seine eigenen Akten sehen.", "knowledge.per_user", True, "asserted"),
    ("Unsere Abkürzungen kennt kein Modell.", "knowledge.unseen_domain", True, "asserted"),
    # German: the rest
    ("Die Daten dürfen das Haus nicht verlassen.", "constraints.on_prem", True, "asserted"),
    ("Es sind Patientenakten, also gilt die DSGVO.", "constraints.regulated", True, "asserted"),
    ("Die Gewichte des Modells dürfen wir nicht anfassen.", "constraints.weights_frozen", True, "asserted"),
    (
        "Trotz ausgefeiltem Prompt stimmen nur 61 % der Zuordnungen, gefordert sind 90 %.",
        "evals.target", 0.9, "asserted",
    ),
    (
        "Trotz ausgefeiltem Prompt stimmen nur 61 % der Zuordnungen, gefordert sind 90 %.",
        "evals.baseline", 0.61, "asserted",
    ),
    ("Ein Programm führt die Abfrage aus und vergleicht das Ergebnis.", "reward.kind", "verifier", "asserted"),
    ("Mein Chef hat auf einer Messe von GRPO gehört und will das.", "requested", "grpo", "attributed"),
    ("Feintuning wollen wir nicht.", "requested", "post_training", "negated"),
    ("Das Modell setzt bisher nur Text fort, es ist ein Basismodell.", "model.type", "base", "asserted"),
    ("Ausprobiert haben wir noch nichts, auch keinen Prompt.", "tried.prompting", True, "negated"),
    ("Wir haben 5.000 Beispiele und wollen nicht in die Cloud.", "data.sft_pairs.rows", 5000, "asserted"),
    # Spanish: how many, of what
    ("Tenemos 3.700 ejemplos revisados por nuestros técnicos.", "data.sft_pairs.rows", 3700, "asserted"),
    ("Hay 25 mil correos con su categoría correcta.", "data.sft_pairs.rows", 25000, "asserted"),
    ("En la carpeta tenemos unos 640 manuales y protocolos internos.", "data.documents.docs", 640, "asserted"),
    (
        "En 9.800 casos el corrector eligió la mejor de dos traducciones.",
        "data.preference_pairs.rows", 9800, "asserted",
    ),
    ("Los usuarios dejaron 120.000 pulgares arriba o abajo.", "data.unpaired_feedback.rows", 120000, "asserted"),
    ("Son 7.500 problemas sin solución y un programa comprueba el resultado.", "data.prompts.rows", 7500, "asserted"),
    ("El archivo suma 1,2 mil millones de tokens de textos técnicos.", "data.corpus.tokens", 1_200_000_000, "asserted"),
    ("Disponemos de medio millón de tokens de normativa propia.", "data.corpus.tokens", 500_000, "asserted"),
    ("Cada informe debe cumplir veintitrés requisitos a la vez.", "behaviour.rules_count", 23, "asserted"),
    ("No tenemos ningún ejemplo etiquetado.", "data.sft_pairs", False, "asserted"),
    ("Hay que cumplir doce reglas y no tenemos servidor.", "behaviour.rules_count", 12, "asserted"),
    # Spanish: knowledge
    ("Los precios cambian todos los días.", "knowledge.changes", "daily", "asserted"),
    ("La normativa se actualiza una vez al año.", "knowledge.changes", "yearly", "asserted"),
    ("El reglamento no va a cambiar.", "knowledge.changes", "never", "asserted"),
    ("Cada respuesta tiene que llevar la fuente y la página.", "knowledge.needs_citations", True, "asserted"),
    ("No hace falta citar las fuentes.", "knowledge.needs_citations", True, "negated"),
    ("Ningún modelo conoce nuestra jerga.", "knowledge.unseen_domain", True, "asserted"),
    ("Cada cliente solo puede ver sus propios contratos.", "knowledge.per_user", True, "asserted"),
    # Spanish: the rest
    ("Los datos no pueden salir de nuestras instalaciones.", "constraints.on_prem", True, "asserted"),
    ("Son historias clínicas, así que hay que cuidar la privacidad.", "constraints.regulated", True, "asserted"),
    ("No queremos tocar los pesos del modelo.", "constraints.weights_frozen", True, "asserted"),
    ("Con el mejor prompt acertamos el 64 % y necesitamos llegar al 85 %.", "evals.baseline", 0.64, "asserted"),
    ("Con el mejor prompt acertamos el 64 % y necesitamos llegar al 85 %.", "evals.target", 0.85, "asserted"),
    ("Un script ejecuta la consulta y compara el resultado.", "reward.kind", "verifier", "asserted"),
    ("Mi jefe leyó en un blog que hay que usar RLHF.", "requested", "rlhf", "attributed"),
    ("No hay nadie que pueda entrenar nada, no queremos fine-tuning.", "requested", "post_training", "negated"),
    ("Todavía no hemos probado ningún prompt.", "tried.prompting", True, "negated"),
    ("El año que viene vamos a recopilar 2.000 ejemplos anotados.", "data.sft_pairs.rows", 2000, "planned"),
    # a second round, of numbers
    ("Cada escrito ha de respetar diecinueve normas.", "behaviour.rules_count", 19, "asserted"),
    ("Nos sobran transcripciones, millón y medio, pero sin valorar.", "data.logs.rows", 1_500_000, "asserted"),
    ("Tenemos cinco mil cuatrocientos ejercicios con corrector automático.", "data.prompts.rows", 5400, "asserted"),
    (
        "Por cada una de las 2.000 reseñas hay una respuesta escrita por el hotel.",
        "data.sft_pairs.rows", 2000, "asserted",
    ),
    ("Acierta 59 de cada 100 y no sube.", "evals.baseline", 0.59, "asserted"),
    ("Hoy el mejor prompt consigue un 48 por ciento.", "evals.baseline", 0.48, "asserted"),
    ("Cada ficha guarda el dictado y el texto final. Hay 24.000.", "data.sft_pairs.rows", 24000, "asserted"),
    ("Trabajamos con un modelo de 7B y nos basta.", "model.params_b", 7.0, "asserted"),
    ("Wir haben zweieinhalbtausend Vorlagen und suchen darin.", "data.documents.docs", 2500, "asserted"),
    ("Das Archiv mit 800 Mio. Token Fachtexten kennt kein Modell.", "data.corpus.tokens", 800_000_000, "asserted"),
    ("Wir wollen das auf zwei 4090ern trainieren.", "hardware.gpus", 2, "asserted"),
    ("Wir testen an 250 Vorgängen, die nie im Training waren.", "evals.held_out_rows", 250, "asserted"),
    ("Ein 70-Milliarden-Modell läuft auf vier H100.", "model.params_b", 70.0, "asserted"),
    ("Ohne Quelle ist eine Antwort für uns wertlos.", "knowledge.needs_citations", True, "asserted"),
    ("El asesor no firma nada que no lleve el artículo al lado.", "knowledge.needs_citations", True, "asserted"),
]  # fmt: skip

SAYS_NOT = [
    (
        "Es ist nicht nur eine Frage des Tons, das Modell muss auch 12 Regeln einhalten.",
        "behaviour.rules_count", "negated",
    ),
    ("Die Regeln sind klar und keine Beispiele sind nötig.", "data.sft_pairs", "planned"),
    ("Wir sind seit 2019 am Markt und haben 45 Filialen.", "data.documents.docs", "asserted"),
    ("Die Antworten dürfen höchstens 5 Sätze lang sein.", "data.sft_pairs.rows", "asserted"),
    ("Der Vorgang läuft auf Version 12 der Software mit 300 Nutzern.", "behaviour.rules_count", "asserted"),
    ("Im Dezember 2024 zogen wir in das Gebäude 7.", "behaviour.rules_count", "asserted"),
    ("Desde 2015 tenemos 38 empleados y 4 sedes.", "data.documents.docs", "asserted"),
    ("Usamos la versión 11 del programa en la planta 3.", "behaviour.rules_count", "asserted"),
    ("Entran 4.000 consultas al día y somos 25 personas.", "data.prompts.rows", "asserted"),
    ("Hay 2.900 circulares y cada mes entra alguna.", "constraints.requests_per_day", "asserted"),
    ("Unos trescientos de esos problemas son también los del examen.", "data.prompts.rows", "asserted"),
    ("Das Vortraining ist abgeschlossen.", "knowledge.changes", "asserted"),
    ("Wir müssen hier den Beleg stornieren können.", "knowledge.needs_citations", "asserted"),
    ("La delegada de protección de datos no permite la nube.", "data.sft_pairs", "asserted"),
    ("Quiero que cumpla tres cosas: que no opine, que sea breve y que salude.", "behaviour.rules_count", "negated"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "value", "status"), SAYS)
def test_says(text: str, field: str, value: object, status: str) -> None:
    evidence = read(text).evidence
    assert (field, value, status) in [(e.field, e.value, e.status) for e in evidence] or (
        value is False and (field, True, "negated") in [(e.field, e.value, e.status) for e in evidence]
    )


def test_a_length_is_one_rule_and_not_sixty() -> None:
    evidence = read("Las respuestas no deben pasar de 60 palabras.").evidence
    assert [e.value for e in evidence if e.field == "behaviour.rules_count"] in ([], [1])


@pytest.mark.parametrize(("text", "field", "status"), SAYS_NOT)
def test_says_not(text: str, field: str, status: str) -> None:
    assert (field, status) not in [(e.field, e.status) for e in read(text).evidence]
