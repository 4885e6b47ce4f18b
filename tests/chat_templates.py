"""Chat templates of many habits, and tokenizers of many habits for them.

The templates are those that TRL ships for conversations of text, and recreations of well-known ones that it does not.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
SHIPPED = [
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "deepseekv3",
    "diffusion_gemma",
    "gemma",
    "gemma3",
    "gemma4",
    "gemma4_v2",
    "gemma4_v5",
    "glm4moe",
    "gptoss",
    "lfm2",
    "lfm2_2_5_v2",
    "lfm2_v2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "muse_glimmer",
    "nemotron_3_nano",
    "nemotron_3_5_lightning",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_8",
    "qwen3_instruct_2507",
]

ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user and assistant') }}{%- endif %}"
)
RECREATED = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}{% if message['role'] in ('user', 'system', 'assistant') %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n{% endfor %}"
    ),
    "mistral_v1": (
        "{{- bos_token }}{%- for message in messages %}" + ALTERNATE + "{%- if message['role'] == 'user' %}"
        "{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- else %}{{- ' ' + message['content'] + eos_token }}"
        "{%- endif %}{%- endfor %}"
    ),
    "mistral_v3": (  # the system message goes into the last message if that is a user's
        "{%- if messages[0]['role'] == 'system' %}{%- set system, turns = messages[0]['content'], messages[1:] %}"
        "{%- else %}{%- set system, turns = '', messages %}{%- endif %}{{- bos_token }}"
        "{%- for message in turns %}" + ALTERNATE + "{%- if message['role'] == 'user' %}{{- '[INST] ' }}"
        "{%- if loop.last and system %}{{- system + '\n\n' }}{%- endif %}{{- message['content'] + '[/INST]' }}"
        "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "mistral_small": (  # writes today's date
        "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
        "{{- '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}{%- set turns = messages[1:] %}"
        "{%- else %}{{- '[SYSTEM_PROMPT]Today is ' + strftime_now('%Y-%m-%d') + '.[/SYSTEM_PROMPT]' }}"
        "{%- set turns = messages %}{%- endif %}{%- for message in turns %}{%- if message['role'] == 'user' %}"
        "{{- '[INST]' + message['content'] + '[/INST]' }}{%- elif message['role'] == 'assistant' %}"
        "{{- message['content'] + eos_token }}{%- else %}{{- raise_exception('only user and assistant') }}"
        "{%- endif %}{%- endfor %}"
    ),
    "llama_2": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system, turns = messages[0]['content'], messages[1:] %}"
        "{%- else %}{%- set system, turns = false, messages %}{%- endif %}{%- for message in turns %}" + ALTERNATE + ""
        "{%- if message['role'] == 'user' %}{%- set told = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' if loop.first and "
        "system else '' %}{{- bos_token + '[INST] ' + told + message['content'].strip() + ' [/INST]' }}"
        "{%- else %}{{- ' ' + message['content'].strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "alpaca": (  # has no special tokens besides the end of sequence
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "kimi_k2": (
        "{%- if tools %}{{- '<|im_system|>tool_declare<|im_middle|>' + tools | tojson + '<|im_end|>' }}{%- endif %}"
        "{%- for message in messages %}{%- if loop.first and message['role'] != 'system' %}"
        "{{- '<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>' }}{%- endif %}"
        "{%- set header = message['role'] if message['role'] in ('user', 'assistant') else 'system' %}"
        "{{- '<|im_' + header + '|>' + (message.get('name') or message['role']) + '<|im_middle|>' }}"
        "{{- message.get('content') or '' }}{%- if message.get('tool_calls') %}{{- '<|tool_calls_section_begin|>' }}"
        "{%- for call in message['tool_calls'] %}{{- '<|tool_call_begin|>' + call['function']['name'] + "
        "'<|tool_call_argument_begin|>' }}{%- if call['function']['arguments'] is string %}"
        "{{- call['function']['arguments'] }}{%- else %}{{- call['function']['arguments'] | tojson }}{%- endif %}"
        "{{- '<|tool_call_end|>' }}{%- endfor %}{{- '<|tool_calls_section_end|>' }}{%- endif %}{{- '<|im_end|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_assistant|>assistant<|im_middle|>' }}{%- endif %}"
    ),
}
TEMPLATES = {name: (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in SHIPPED} | RECREATED
TRAINING = {
    name: (FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8")
    for name in SHIPPED
    if (FOLDER / f"{name}_training.jinja").exists()
}
"""TRL's templates with generation tags, by the name of the template that they stand for."""

ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm": "<|endoftext|>",
    "gptoss": "<|return|>",
    "llama3": "<|eot_id|>",
    "muse": "<|eot|>",
    "phi3": "<|endoftext|>",
    "zephyr": "</s>",
    "mistral": "</s>",
    "llama_2": "</s>",
    "alpaca": "</s>",
}
"""End-of-sequence tokens by the beginning of a template's name; others have ``<|im_end|>``."""

MARK = re.compile(
    r"<\|[^|<>\s'\"]+\|?>|<[a-z_]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT|gMASK)\]|<sop>"
)
PLAIN_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SENTENCES = (
    "The sky is blue today. Is it green? No, it is not. Yes, of course. Let me think about the weather.",
    '{"name": "get_weather", "arguments": {"city": "Paris"}} user assistant system tool',
)
HABITS = ("bytes", "first", "always", "prepend", "stripping", "trimmed", "folding", "bos", "eos")
"""How a tokenizer treats text.

"bytes": byte-level BPE, as Qwen's. "first", "always": a space as ``▁``, with one before the text's first word, or
before that of every part between special tokens. "prepend": Llama 2's normaliser. "stripping": special tokens take the
white space around them. "trimmed": the place of a token is without its white space, as in Llama 3. "folding": NFKC and
small letters. "bos", "eos": byte-level, and the tokenizer itself adds that token to every text.
"""


def end_of(name: str) -> str:
    """Return the end-of-sequence token of a template."""
    return next((end for start, end in ENDS.items() if name.startswith(start)), "<|im_end|>")


@cache
def _backend(habit: str) -> str:
    if habit in ("first", "always", "prepend"):
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        scheme = "always" if habit == "prepend" else habit
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=habit != "prepend")
        trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>"], show_progress=False)
        core.train_from_iterator(SENTENCES, trainer)
        written = json.loads(core.to_str())
        vocabulary = written["model"]["vocab"]
        for byte in range(256):
            vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
        core = Tokenizer.from_str(json.dumps(written))
        if habit == "prepend":
            core.pre_tokenizer = None
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        return core.to_str()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if habit == "trimmed":
        core.post_processor = processors.ByteLevel(trim_offsets=True)
    if habit == "folding":
        core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return core.to_str()


@cache
def tokenizer(name: str, habit: str = "bytes", template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a habit with the special tokens of a template.

    Args:
        name: name of the template.
        habit: one of :data:`HABITS`.
        template: another template with the same special tokens.
    """
    core, end = Tokenizer.from_str(_backend(habit)), end_of(name)
    strip = habit == "stripping"
    special = dict.fromkeys(["<s>", end, *sorted(MARK.findall(TEMPLATES[name]))])
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False, rstrip=strip) for mark in special])
    core.add_tokens([AddedToken(mark, normalized=False, lstrip=strip, rstrip=strip) for mark in PLAIN_MARKS])
    if habit in ("bos", "eos"):
        added = "<s>" if habit == "bos" else end
        single = f"{added}:0 $A:0" if habit == "bos" else f"$A:0 {added}:0"
        core.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(added, core.token_to_id(added))]
        )
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=end, chat_template=template or TEMPLATES[name]
    )
    return made
