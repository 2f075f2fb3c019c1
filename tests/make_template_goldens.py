#!/usr/bin/env python3
"""Makes tests/data/templates.*.golden: conversations and their token ids, by transformers.

    pip install "transformers<5" sentencepiece protobuf jinja2
    python3 tests/make_template_goldens.py [OUTPUT_FOLDER]    # from the repository root; default tests/data

templates.small.golden    with tests/data/spm_small.model: every machine can test with it
templates.llama2.golden   with ../shared/tokenizers/llama2/tokenizer.model

Lines: "case TEMPLATE LEGACY", "system HEX" (absent: none), then "user HEX" and "reply HEX" for each turn, "ids ...".
transformers 4's slow LlamaTokenizer is the reference (it runs the sentencepiece library itself); the fast one has to
agree. LLaMA-2's Jinja text is the official one; the others have no official one and are written here after FastChat's
vicuna_v1.1 and TinyChat's prompt_templates.py.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import transformers
from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")

VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m['content'].strip() + '</s>' }}{% endif %}{% endfor %}")

PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' and not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ m['content'] }}{% endfor %}")

IDEAS = (
    "Of course! Here are some creative ideas for a 10-year-old's birthday party:",
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues and riddles for the kids"
    " to solve, leading them to hidden treasures and surprises.",
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive experiments. You can"
    " set up different stations with activities like making slime, erupting volcanoes, or creating simple chemical"
    " reactions.",
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen or white sheet. Create"
    " a cozy seating area with blankets and pillows, and serve popcorn and snacks while the kids enjoy a favorite"
    " movie under the stars.",
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide a variety of craft"
    " supplies like beads, paints, and fabrics, and let them create their own unique masterpieces to take home as"
    " party favors.",
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up different stations for"
    " activities like sack races, relay races, basketball shooting, and obstacle courses. Give out medals or"
    " certificates to the participants.",
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini pizzas, cupcakes, or"
    " cookies. Provide toppings, frosting, and decorating supplies, and let them get hands-on in the kitchen.",
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in fun training activities."
    " Set up an obstacle course, have them design their own superhero capes or masks, and organize superhero-themed"
    " games and challenges.",
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. Arrange activities like"
    " hiking, nature scavenger hunts, or a picnic with games. Encourage exploration and appreciation for the"
    " outdoors.",
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a great celebration!")

SYSTEM = {
    "llama-2": "You are a helpful assistant.",
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,"
              " detailed, and polite answers to the user's questions.",
    "human": "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful,"
             " detailed, and polite answers to the human's questions.",
    "plain": "A dialogue:",
}

TURNS = [
    ("Hello! How are you?", "I am fine, thank you."),
    ("What is 12 + 30?\nAnd \u20ac or \U0001f642?", "42.\n\n- one\n- two"),
    ("Tell me about {user} and {trim}x{/trim}, [INST] or <0x41>", "Nothing."),
]
SPACES = [
    (" \t two  words \u3000\n", "\n\u2003an answer\x1f "),
    ("\x85 \u00e9t\u00e9\u00a0", "  "),
    ("   ", "\u2028end\u200b "),
]


def human(with_system):
    head = ("### Human: Got any creative ideas for a 10 year old's birthday?\n### Assistant: " + "\n".join(IDEAS)
            + "</s>")
    return ("{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\\n' + one_shot }}"
            "{% elif m['role'] == 'user' %}"
            + ("" if with_system else "{% if loop.first %}{{ one_shot }}{% endif %}")
            + "{{ '### Human: ' + m['content'] + '\\n### Assistant:' }}"
            "{% else %}{{ ' ' + m['content'].strip() + '</s>' }}{% endif %}{% endfor %}"), head


def render(tokenizer, name, system, messages):
    """The text of a conversation, as apply_chat_template makes it."""
    extra = {}
    if name == "human":
        template, extra["one_shot"] = human(system is not None)
    else:
        template = {"llama-2": LLAMA2, "vicuna": VICUNA, "plain": PLAIN}[name]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **extra)


def cases():
    for name in ("llama-2", "vicuna", "human", "plain"):
        for system in (None, SYSTEM[name]):
            yield name, system, TURNS[:1]
            yield name, system, TURNS
    for name in ("llama-2", "vicuna"):
        yield name, None, SPACES
        yield name, "\n system \u3000", SPACES
    yield "llama-2", " s ", SPACES[2:]  # strips into the template's own text


def load(model, legacy):
    """The slow and the fast tokenizer, loaded as from a checkpoint's folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, pathlib.Path(folder) / "tokenizer.model")
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "bos_token": "<s>",
                  "eos_token": "</s>", "unk_token": "<unk>"}
        (pathlib.Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return [AutoTokenizer.from_pretrained(folder, use_fast=fast) for fast in (False, True)]


def golden(path, model):
    lines = []
    for legacy in (False, True):
        slow, fast = load(model, legacy)
        for name, system, turns in cases():
            lines.append(f"case {name} {int(legacy)}")
            messages = []
            if system is not None:
                messages.append({"role": "system", "content": system})
                lines.append("system " + system.encode().hex())
            for i, (user, reply) in enumerate(turns):
                messages.append({"role": "user", "content": user})
                lines.append("user " + user.encode().hex())
                if i + 1 < len(turns):  # the last turn awaits its reply
                    messages.append({"role": "assistant", "content": reply})
                    lines.append("reply " + reply.encode().hex())
            text = render(slow, name, system, messages)
            if name == "human" and system and len(turns) == 1:
                # the length that docs of the original give for its whole prompt with "hi"
                assert len(text) - len(turns[0][0]) + len("hi") == 2265, len(text)
            bos = not text.startswith("<s>")
            ids = slow(text, add_special_tokens=bos)["input_ids"]
            if "llama2" in path.name:  # the small model has what the fast class cannot do (UNUSED, user-defined)
                assert fast(text, add_special_tokens=bos)["input_ids"] == ids, (legacy, text)
            lines.append("ids " + " ".join(map(str, ids)))
    path.write_text("\n".join(lines) + "\n")


def main():
    if not transformers.__version__.startswith("4."):
        sys.exit("needs transformers 4.x, whose slow LlamaTokenizer runs sentencepiece itself")
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data"
    golden(out / "templates.small.golden", ROOT / "tests/data/spm_small.model")
    golden(out / "templates.llama2.golden", ROOT.parent / "shared/tokenizers/llama2/tokenizer.model")


main()
