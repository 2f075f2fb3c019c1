#!/usr/bin/env python3
"""Makes tests/data/templates.texts.golden: conversations as texts, rendered from Jinja by transformers.

    pip install transformers tokenizers jinja2
    python3 tests/make_template_texts.py [OUTPUT_FILE]     # from the repository root

Lines: "case TEMPLATE", "system HEX" (absent: none was given), then "user HEX" and "reply HEX" for each turn, "text HEX".

The Jinja texts are those of the families' tokenizer_config.json, the long ones (LLaMA-3.1, Qwen2.5 and 3, Mistral v0.3,
DeepSeek-R1) without what they do with tools. Where there is no official one (MPT as llm-foundry's hf_chat does it,
TinyChat's prompt_templates.py for MPT and Falcon), it is written here after the Python code.
"""
import pathlib
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent

ALTERNATE = ("{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
             "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}")
MOSAIC = ("A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest"
          " answers.")
SPLIT_SYSTEM = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
                "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
                "{% set system_message = SYSTEM %}{% endif %}")

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
          " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


def mistral(reply):
    return ("{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ " + reply +
            " }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")


def mistral_later(opening, closing, reply, where):
    return """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if WHERE and system_message is defined %}
            {{- "OPENING" + system_message + "\\n\\n" + message["content"] + "CLOSING" }}
        {%- else %}
            {{- "OPENING" + message["content"] + "CLOSING" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- REPLY }}
    {%- endif %}
{%- endfor %}
""".replace("WHERE", where).replace("OPENING", opening).replace("CLOSING", closing).replace("REPLY", reply)


R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<\uff5cUser\uff5c>' + message['content']}}"
    "{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}")

ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token"
    " }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")

MPT = SPLIT_SYSTEM.replace("SYSTEM", repr(MOSAIC)) + (
    "{% for message in loop_messages %}{% if loop.index0 == 0 %}"
    "{{ '<|im_start|>system\n' + system_message.strip() + '\n'}}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% else %}"
    "{{ '\n' + '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endif %}"
    "{% if (add_generation_prompt == true and loop.last) %}{{ '\n' + '<|im_start|>' + 'assistant' + '\n' }}{% endif %}"
    "{% endfor %}")

FALCON = SPLIT_SYSTEM.replace("SYSTEM", "''") + "{% for message in loop_messages %}" + ALTERNATE + (
    "{% if loop.index0 == 0 %}{{ system_message.strip() }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '\n\nUser: ' + message['content'].strip().replace('\r\n', '\n').replace('\n\n', '\n') }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '\n\nAssistant: ' + message['content'].strip().replace('\r\n', '\n').replace('\n\n', '\n') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}")


def tinychat(default, system, user, reply):
    return SPLIT_SYSTEM.replace("SYSTEM", repr(default)) + (
        "{% if system_message %}{{ '" + system[0] + "' + system_message + '" + system[1] + "' }}{% endif %}"
        "{% for m in loop_messages %}{% if m['role'] == 'user' %}{{ '" + user[0] + "' + m['content'] + '" + user[1] +
        "' }}{% else %}{{ ' ' + m['content'].strip() + '" + reply + "' }}{% endif %}{% endfor %}")


TINYCHAT_MPT = "\n".join((
    "- You are a helpful assistant chatbot trained by MosaicML.", "- You answer questions.",
    "- You are excited to be able to help the user, but will refuse to do anything that could be considered harmful to"
    " the user.",
    "- You are more than just an information source, you are also able to write poetry, short stories, and make jokes."))
TINYCHAT_HUMAN = ("A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful,"
                  " detailed, and polite answers to the human's questions.")

R1_BOS, R1_EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"

# name: Jinja, bos_token, eos_token
TEMPLATES = {
    "llama-3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama-3.1": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral-v0.1": (mistral("message['content'] + eos_token + ' '"), "<s>", "</s>"),
    "mistral-v0.2": (mistral("message['content'] + eos_token"), "<s>", "</s>"),
    "mistral-v0.2-spaced": (mistral_later(" [INST] ", " [/INST]", '" " + message["content"] + eos_token', "loop.first"),
                            "<s>", "</s>"),
    "mistral-v0.3": (mistral_later("[INST] ", "[/INST]", '" " + message["content"]|trim + eos_token', "loop.last"),
                     "<s>", "</s>"),
    "chatml": (CHATML, "", "<|im_end|>"),
    "qwen2": ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
              "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
              + CHATML[len("{% for message in messages %}"):], "", "<|im_end|>"),
    "qwen2.5": (QWEN25, "", "<|im_end|>"),
    "qwen3": (QWEN3, "", "<|im_end|>"),
    "qwen3-nothink": (QWEN3, "", "<|im_end|>"),
    "deepseek-r1": (R1, R1_BOS, R1_EOS),
    "zephyr": (ZEPHYR, "<s>", "</s>"),
    "mpt-chat": (SPLIT_SYSTEM.replace("SYSTEM", repr(MOSAIC)) +
                 "{{ '<|im_start|>system\n' + system_message + '<|im_end|>\n' }}"
                 + CHATML.replace("in messages", "in loop_messages"), "", "<|endoftext|>"),
    "mpt-chat-hf": (MPT, "", "<|endoftext|>"),
    "falcon": (FALCON, "", "<|endoftext|>"),
    "tinychat-falcon": (tinychat("", ("", "\\n\\n"), ("User: ", "\\n\\nAssistant:"), "\\n\\n"), "", "<|endoftext|>"),
    "tinychat-mpt-chat": (tinychat(TINYCHAT_MPT, ("<|im_start|>system\\n", "<|im_end|>\\n"), (
        "<|im_start|>user: ", "<|im_end|>\\n<|im_start|>assistant:"), "<|im_end|>\\n"), "", "<|endoftext|>"),
    "tinychat-mpt": (tinychat(TINYCHAT_HUMAN, ("", "\\n"), ("### Human: ", "\\n### Assistant:"), "\\n"), "",
                     "<|endoftext|>"),
}

TURNS = [
    ("Hello! How are you?", "I am fine, thank you."),
    ("What is 12 + 30?\nAnd \u20ac or \U0001f642?", "42.\n- one\n- two"),
    ("Tell me about {user} and {trim}x{/trim}, [INST] or <0x41>", "Nothing."),
]
SPACES = [
    (" \t two  words \u3000\n", "\n\u2003an answer\x1f "),
    ("\x85 \u00e9t\u00e9\u00a0", "  "),
    ("   ", "\u2028end\u200b "),
]
THOUGHTS = [
    ("Hi", "<think>\nA greeting.\n</think>\n\nHello!\n"),
    ("And?", "so, <b>well\n</think>\nfirst</think> \n\nYes. <think>"),
    ("Go on", "<think>\n\n</think>\n\n"),
]


def cases(name):
    systems = [None] if name in ("mistral-v0.1", "mistral-v0.2") else [None, "You are terse."]
    for system in systems:
        for turns in (TURNS[:1], TURNS, SPACES):
            yield system, turns
    if name in ("qwen3", "qwen3-nothink", "deepseek-r1", "chatml"):
        yield None, THOUGHTS
    if name in ("llama-3", "llama-3.1", "mpt-chat-hf", "falcon"):
        yield "\n system \u3000", TURNS[:1]


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data/templates.texts.golden"
    lines = []
    for name, (template, bos, eos) in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos or None,
                                            eos_token=eos)
        for system, turns in cases(name):
            messages = [] if system is None else [{"role": "system", "content": system}]
            lines.append("case " + name)
            if system is not None:
                lines.append("system " + system.encode().hex())
            for i, (user, reply) in enumerate(turns):
                messages.append({"role": "user", "content": user})
                lines.append("user " + user.encode().hex())
                if i + 1 < len(turns):  # the last turn awaits its reply
                    messages.append({"role": "assistant", "content": reply})
                    lines.append("reply " + reply.encode().hex())
            extra = {"enable_thinking": False} if name == "qwen3-nothink" else {}
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False,
                                                 add_generation_prompt=True, **extra)
            lines.append("text " + text.encode().hex())
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
