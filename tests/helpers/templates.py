"""Chat templates with the structure of those in use, in a few words each."""

from __future__ import annotations

_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
)


def _turns(user: str, assistant: str, tail: str = "", first: str = "") -> str:
    """User and assistant messages; ``first`` comes before the first user message's content."""
    return (
        first
        + "{% for m in messages %}{% if m.role == 'user' %}"
        + user
        + "{% elif m.role == 'assistant' %}"
        + assistant
        + "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}" + tail + "{% endif %}"
    )


LLAMA2 = _SYSTEM + _turns(
    "{{ bos_token + '[INST] ' }}{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m.content | trim + ' [/INST]' }}",
    "{{ ' ' + m.content | trim + ' ' + eos_token }}",
)
MISTRAL1 = "{{ bos_token }}" + _turns("{{ '[INST] ' + m.content + ' [/INST]' }}", "{{ ' ' + m.content + eos_token }}")
MISTRAL1_GLUED = "{{ bos_token }}" + _turns("{{ '[INST] ' + m.content + ' [/INST]' }}", "{{ m.content + eos_token }}")
MISTRAL3 = "{{ bos_token }}" + _turns("{{ '[INST] ' + m.content + '[/INST]' }}", "{{ ' ' + m.content + eos_token }}")
TEKKEN = "{{ bos_token }}" + _turns("{{ '[INST]' + m.content + '[/INST]' }}", "{{ m.content + eos_token }}")
ZEPHYR = _turns(
    "{{ '<|user|>\n' + m.content + eos_token + '\n' }}",
    "{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}",
    "<|assistant|>\n",
)
PHI3 = "{{ bos_token }}" + _turns(
    "{{ '<|user|>\n' + m.content + '<|end|>\n' }}",
    "{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}",
    "<|assistant|>\n",
)
GEMMA = "{{ bos_token }}" + _turns(
    "{{ '<start_of_turn>user\n' + m.content | trim + '<end_of_turn>\n' }}",
    "{{ '<start_of_turn>model\n' + m.content | trim + '<end_of_turn>\n' }}",
    "<start_of_turn>model\n",
)
VICUNA = _turns(
    "{{ 'USER: ' + m.content }}",
    "{{ ' ASSISTANT: ' + m.content + eos_token }}",
    " ASSISTANT:",
    "{{ bos_token + 'Be kind. ' }}",
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PLAIN = _turns("{{ '### Human: ' + m.content + '\n' }}", "{{ '### Assistant: ' + m.content + '\n' }}", "### Assistant:")

# Templates of models that think before they answer. They leave the thinking out of earlier messages.
_MARKED = "{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
QWEN3 = (
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{% set content = '<think>\n' + thought + '\n</think>\n\n' + content %}{% endif %}"
    "{% endif %}" + _MARKED + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_THINKING = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
QWEN3_SILENT = QWEN3.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
DEEPSEEK_R1 = "{{ bos_token }}" + _turns(
    "{{ '<|im_start|>' + m.content }}",
    "{{ '<|im_end|>' + (m.content.split('</think>') | last) + eos_token }}",
    "<|im_end|><think>\n",
)
GIVEN_APART = (
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' and m.reasoning_content and loop.last %}"
    "{% set content = '<think>' + m.reasoning_content + '</think>' + content %}{% endif %}"
    + _MARKED
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% else %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THINKING = {
    "QWEN3": QWEN3,
    "QWEN3_THINKING": QWEN3_THINKING,
    "QWEN3_SILENT": QWEN3_SILENT,
    "DEEPSEEK_R1": DEEPSEEK_R1,
    "GIVEN_APART": GIVEN_APART,
}
