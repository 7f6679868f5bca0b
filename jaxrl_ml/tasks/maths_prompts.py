r"""Prompt formats of maths: example in, chat messages or plain text out.

The English instruction is the one that OpenR1-Math's own demonstrations answer; the others say the same. All of them keep
`\boxed{}` as it is, since that is where the reward looks. Multiple choice shows its choices as `A) …`, one a line; the answer
is the letter.
"""

from __future__ import annotations

from jaxrl_ml.types import Example, Message, UserError

INSTRUCTIONS = {
    "en": r"Please reason step by step, and put your final answer within \boxed{}.",
    "zh": r"请逐步推理，并将最终答案放在 \boxed{} 中。",
    "es": r"Por favor, razona paso a paso y escribe tu respuesta final dentro de \boxed{}.",
    "fr": r"Veuillez raisonner étape par étape et mettre votre réponse finale dans \boxed{}.",
    "de": r"Bitte denke Schritt für Schritt nach und gib deine endgültige Antwort in \boxed{} an.",
    "ja": r"段階を追って考え、最終的な答えを \boxed{} の中に書いてください。",
    "ru": r"Пожалуйста, рассуждайте шаг за шагом и запишите окончательный ответ внутри \boxed{}.",
    "it": r"Per favore, ragiona passo dopo passo e scrivi la risposta finale all'interno di \boxed{}.",
    "pt": r"Por favor, raciocine passo a passo e coloque a sua resposta final dentro de \boxed{}.",
    "ko": r"단계별로 추론하고, 최종 답을 \boxed{} 안에 적어 주세요.",
    "th": r"โปรดคิดหาเหตุผลทีละขั้นตอน และใส่คำตอบสุดท้ายไว้ใน \boxed{}",
    "ar": r"يرجى التفكير خطوة بخطوة، ووضع الإجابة النهائية داخل \boxed{}.",
    "vi": r"Hãy suy luận từng bước một và đặt câu trả lời cuối cùng trong \boxed{}.",
    "id": r"Silakan bernalar langkah demi langkah, lalu tuliskan jawaban akhir Anda di dalam \boxed{}.",
    "sw": r"Tafadhali fikiri hatua kwa hatua, na uweke jibu lako la mwisho ndani ya \boxed{}.",
    "hi": r"कृपया चरण-दर-चरण तर्क करें और अपना अंतिम उत्तर \boxed{} के भीतर लिखें।",
    "bn": r"অনুগ্রহ করে ধাপে ধাপে যুক্তি দিন এবং আপনার চূড়ান্ত উত্তরটি \boxed{} এর মধ্যে লিখুন।",
    "te": r"దయచేసి దశలవారీగా ఆలోచించి, మీ తుది సమాధానాన్ని \boxed{} లోపల రాయండి.",
    "he": r"אנא חשבו צעד אחר צעד, וכתבו את התשובה הסופית בתוך \boxed{}.",
    "ro": r"Te rog să raționezi pas cu pas și să scrii răspunsul final în \boxed{}.",
}
"""What to do with a problem, by ISO 639-1 code."""


def boxed(example: Example) -> list[Message]:
    r"""The question and the English instruction to reason and to answer in `\boxed{}`, as one user message."""
    return [{"role": "user", "content": f"{_question(example)}\n\n{INSTRUCTIONS['en']}"}]


def boxed_native(example: Example) -> list[Message]:
    """The same with the instruction in the question's language. Raises UserError for a language without one."""
    if example.language not in INSTRUCTIONS:
        raise UserError(
            f"boxed_native: example {example.id!r} is in {example.language!r}, instructions are in {', '.join(INSTRUCTIONS)}; "
            "use boxed, or add one to INSTRUCTIONS"
        )
    return [{"role": "user", "content": f"{_question(example)}\n\n{INSTRUCTIONS[example.language]}"}]


def plain(example: Example) -> str:
    """`Question: …`, then `Answer:` to be completed, for base models."""
    return f"Question: {_question(example)}\nAnswer:"


def _question(example: Example) -> str:
    choices = example.fields.get("choices", ())
    if not choices:
        return example.fields["question"]
    lines = (f"{letter}) {choice}" for letter, choice in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", choices, strict=False))
    return "\n".join((example.fields["question"] + "\n", *lines))
