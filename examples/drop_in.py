"""A program that uses llama-cpp-python, steered: the three lines marked + are all that was added to it."""

import os
from pathlib import Path

from llama_cpp import ChatCompletionRequestMessage, Llama

from sia_local import SiaConfig, SiaLogitsProcessor  # +

MODELS = Path(os.environ.get("SIA_MODELS", Path(__file__).parent.parent / "models"))
messages: list[ChatCompletionRequestMessage] = [
    {"role": "user", "content": "Tell a short story about a quiet bear in a small town."}
]

llm = Llama(str(MODELS / "demo-base.gguf"), n_ctx=512, seed=1, verbose=False)
sia = SiaLogitsProcessor(llm, MODELS / "demo-value.gguf", SiaConfig(gate="rate", beta=2, beta_unit="spread"))  # +
answer = llm.create_chat_completion(
    messages,
    max_tokens=120,
    temperature=1.0,
    top_k=10,
    top_p=1.0,
    min_p=0.0,
    logits_processor=sia.processors,  # +
)
assert isinstance(answer, dict)
print(answer["choices"][0]["message"]["content"])

# What it did is there, too, as from SIA itself.
stats = sia.stats
print(f"\n{stats.junctions} of {stats.tokens} tokens steered, {stats.flips} turned, KL {stats.kl_steering:.2f} nats")
for step in [s for s in sia.steps if s.flipped][:3]:
    print(f"  turned to {step.text!r} at token {step.index}, entropy {step.entropy:.2f} nats")
