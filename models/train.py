#!/usr/bin/env python3
"""Makes the demo model from nothing: tokenizer, training, Hugging Face folder, AWQ dump, scores.

    python models/train.py --out models/build

writes
    OUT/tinychat-demo/   config.json, model-*.safetensors (fp16), tokenizer.model, ...
    OUT/demo-w4-g128.pt  an AWQ dump as llm-awq writes it (packing B, group size 128)
    OUT/results.json     exact-match figures on models/questions.tsv
and needs one GPU for some minutes. See README.md.
"""

import argparse
import array
import collections
import itertools
import json
import math
import multiprocessing
import os
import re
import time
import zlib

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as nnf
from sentencepiece import sentencepiece_model_pb2

import dialogue

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = dict(vocab_size=2048, hidden_size=512, intermediate_size=1024, num_hidden_layers=5,
              num_attention_heads=8, num_key_value_heads=8, rms_norm_eps=1e-5,
              rope_theta=10000.0, max_position_embeddings=1024)
GROUP = 128
BOS, EOS = 1, 2
LENGTHS = (256, 256, 1024)  # row lengths of consecutive training steps
TOKENS_PER_STEP = 65536
# The rendering of LLaMA-2-chat: see "Chat template" in README.md.
CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% elif m['role'] == 'user' %}{% set content = ns.system + m['content'] %}"
    "{% set ns.system = '' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}")


def say(*words):
    print(*words, flush=True)


# --------------------------------------------------------------------------- held-out questions

def read_questions(path):
    """[(category, [questions], expected answer)]"""
    with open(path, encoding="utf-8") as f:
        rows = [line.rstrip("\n").split("\t") for line in f if line[0] != "#"]
    return [(row[0], row[1:-1], row[-1]) for row in rows]


def held_out(cases):
    """What the training data must not contain: texts, and patterns where no number is involved."""
    questions = [q for _, qs, _ in cases for q in qs]
    patterns = {dialogue.pattern(q) for q in questions}
    return ({dialogue.normal(q) for q in questions}, {p for p in patterns if "#" not in p})


def check_turn(question, answer, hold):
    """Stops the training if a held-out question or sum is about to be learnt."""
    texts, patterns = hold
    assert dialogue.normal(question) not in texts, f"held-out question in training: {question}"
    assert dialogue.pattern(question) not in patterns, f"held-out phrasing in training: {question}"
    for a, op, b in re.findall(r"(\d+) ([-+x]) (\d+) = ", answer):
        a, b = int(a), int(b)
        held = ((a, b) in dialogue.HELD_OUT_PRODUCTS if op == "x" else dialogue.held_out_sum(a, b))
        assert not held, f"held-out operands in training: {answer}"


def check_questions(cases):
    """Sums, differences and doubles among the questions use held-out operands only."""
    for _, _, answer in cases:
        for a, op, b in re.findall(r"^(\d+) ([-+x]) (\d+) = ", answer):
            a, b = int(a), int(b)
            in_table = a <= 12 and b <= 12
            assert (in_table or (a, b) in dialogue.HELD_OUT_PRODUCTS if op == "x"
                    else dialogue.held_out_sum(a, b)), answer


# --------------------------------------------------------------------------- tokenizer

def train_tokenizer(path, turns=150000):
    talk = dialogue.Dialogues(0).conversation()
    text = (f"[INST] {q} [/INST] {a}" for q, a in itertools.islice(talk, turns))
    ascii_chars = [" ".join(map(chr, range(33, 127)))]  # so that each of them has a piece
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain(text, ascii_chars), model_prefix=path[:-len(".model")],
        model_type="bpe", vocab_size=CONFIG["vocab_size"], character_coverage=1.0,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, num_threads=8, max_sentence_length=4192,
        minloglevel=2)
    os.remove(path[:-len(".model")] + ".vocab")


class Tokenizer:
    """Ids exactly as transformers' LlamaTokenizer (legacy false) gives them: the text between two
    special tokens is encoded as one run, without a dummy prefix after <s>."""

    def __init__(self, path):
        model = sentencepiece_model_pb2.ModelProto()
        with open(path, "rb") as f:
            model.ParseFromString(f.read())
        model.normalizer_spec.add_dummy_prefix = False
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self.space = self.sp.encode(" ")
        self.replies = {}

    def prompt(self, question, system=""):
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        return [BOS] + self.sp.encode(f"[INST] {(head + question).strip()} [/INST]")

    def reply(self, answer):
        if answer not in self.replies:
            self.replies[answer] = self.sp.encode(" " + answer)
        return self.replies[answer]

    def decode(self, ids):
        return self.sp.decode([i for i in ids if i != EOS]).strip()


# --------------------------------------------------------------------------- training data

def make_rows(job):
    """[n, length+1] tokens of endless conversations, and where the loss is taken (replies and the
    </s> that ends them). After half of the replies the history shows the space that a re-tokenised
    conversation has before </s> and a live one has not; what precedes it is then not learnt."""
    path, seed, length, n, hold = job
    tokenizer = Tokenizer(path)
    ids = np.zeros((n, length + 1), np.int16)
    learn = np.zeros((n, length + 1), bool)
    for row in range(n):
        talk = dialogue.Dialogues(seed * 100003 + row, hold)
        system = talk.system_text()
        spaced = talk.r.random() < 0.5
        row_ids, row_learn = [], []
        for question, answer in talk.conversation():
            check_turn(question, answer, hold)
            prompt, reply = tokenizer.prompt(question, system), tokenizer.reply(answer)
            system = ""
            tail = tokenizer.space + [EOS] if spaced else [EOS]
            row_ids += prompt + reply + tail
            row_learn += [False] * len(prompt) + [True] * len(reply) + [not spaced] * len(tail)
            if len(row_ids) > length:
                break
        ids[row] = row_ids[:length + 1]
        learn[row] = row_learn[:length + 1]
    return ids, learn


def stream(pool, path, hold, steps, ahead=64):
    """Batches in a fixed order, made by other processes ahead of their use."""
    def start(step):
        length = LENGTHS[step % len(LENGTHS)]
        return pool.apply_async(make_rows, ((path, step + 1, length, TOKENS_PER_STEP // length,
                                             hold),))
    pending = collections.deque(start(step) for step in range(min(ahead, steps)))
    for step in range(steps):
        yield pending.popleft().get()
        if step + ahead < steps:
            pending.append(start(step + ahead))


# --------------------------------------------------------------------------- model

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def init_weights(device):
    """fp32 weights under their Hugging Face names."""
    h, inner, layers = (CONFIG[k] for k in ("hidden_size", "intermediate_size",
                                            "num_hidden_layers"))
    shapes = {"gate_proj": (inner, h), "up_proj": (inner, h), "down_proj": (h, inner)}
    generator = torch.Generator().manual_seed(1)
    normal = lambda shape, std: torch.randn(shape, generator=generator) * std
    weights = {"model.embed_tokens.weight": normal((CONFIG["vocab_size"], h), 0.02),
               "model.norm.weight": torch.ones(h)}
    for i in range(layers):
        for name in LINEARS:
            kind = name.split(".")[1]
            std = 0.02 / math.sqrt(2 * layers) if kind in ("o_proj", "down_proj") else 0.04
            weights[f"model.layers.{i}.{name}.weight"] = normal(shapes.get(kind, (h, h)), std)
        for name in NORMS:
            weights[f"model.layers.{i}.{name}.weight"] = torch.ones(h)
    return {k: w.to(device).requires_grad_() for k, w in weights.items()}


def rms_norm(x, weight):
    x = x.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
    return (x * weight).bfloat16()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def block(x, cos, sin, norm1, norm2, wq, wk, wv, wo, gate, up, down):
    """One decoder layer; x [batch, length, hidden] fp32, matrices bf16."""
    batch, length, hidden = x.shape
    heads = CONFIG["num_attention_heads"]
    n = rms_norm(x, norm1)
    q, k, v = (nnf.linear(n, w).view(batch, length, heads, -1).transpose(1, 2)
               for w in (wq, wk, wv))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    a = nnf.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + nnf.linear(a.transpose(1, 2).reshape(batch, length, hidden), wo)
    m = rms_norm(x, norm2)
    return x + nnf.linear(nnf.silu(nnf.linear(m, gate)) * nnf.linear(m, up), down)


def loss_of(x, norm, table, targets):
    logits = nnf.linear(rms_norm(x, norm), table).float()
    return nnf.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1),
                             ignore_index=-100)


def fake_quantize(w):
    """The weight as 4 bits with group size 128 would keep it (see quantize); gradients pass."""
    g = w.detach().view(w.shape[0], -1, GROUP).half().float()
    low, high = g.amin(-1, keepdim=True), g.amax(-1, keepdim=True)
    s = ((high - low).clamp(min=1e-5) / 15).half().float()
    z = (-torch.round(low / s)).clamp(0, 15)
    q = (torch.round(g / s) + z).clamp(0, 15)
    return w + (((q - z) * s).view_as(w) - w).detach()


class Model:
    def __init__(self, weights, compiled):
        wrap = torch.compile if compiled else (lambda f: f)
        self.weights = weights
        self.block, self.loss, self.fake = wrap(block), wrap(loss_of), wrap(fake_quantize)
        device = weights["model.norm.weight"].device
        half = CONFIG["hidden_size"] // CONFIG["num_attention_heads"] // 2
        freq = CONFIG["rope_theta"] ** (-torch.arange(half, device=device).float() / half)
        phase = torch.outer(torch.arange(max(LENGTHS), device=device).float(), freq)
        self.cos, self.sin = phase.cos(), phase.sin()

    def __call__(self, ids, targets, quantized):
        w = self.weights
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        table = w["model.embed_tokens.weight"].bfloat16()
        x = nnf.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(CONFIG["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            matrices = [w[f"{layer}{name}.weight"] for name in LINEARS]
            matrices = [(self.fake(m) if quantized else m).bfloat16() for m in matrices]
            x = self.block(x, cos, sin, *(w[f"{layer}{n}.weight"] for n in NORMS), *matrices)
        return self.loss(x, w["model.norm.weight"], table, targets)


def train(args, pool, tokenizer_path, hold, device):
    weights = init_weights(device)
    model = Model(weights, compiled=device == "cuda")
    decay = [w for w in weights.values() if w.dim() == 2]
    rest = [w for w in weights.values() if w.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1},
                                   {"params": rest, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    warmup, plain = max(1, min(300, args.steps // 10)), int(args.steps * 0.6)
    start, seen = time.time(), 0
    for step, (ids, learn) in enumerate(stream(pool, tokenizer_path, hold, args.steps)):
        progress = max(0.0, (step - warmup) / (args.steps - warmup))
        cosine = 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        lr = args.lr * min((step + 1) / warmup, cosine)
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids = torch.from_numpy(ids).to(device, non_blocking=True).long()
        learn = torch.from_numpy(learn).to(device, non_blocking=True)
        targets = torch.where(learn[:, 1:], ids[:, 1:], -100)
        # Of the last 40 % of the steps, three out of four train for 4 bits.
        loss = model(ids[:, :-1].contiguous(), targets, step >= plain and step % 4 != 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += ids.numel()
        if step % args.log == 0 or step == args.steps - 1:
            say(f"step {step} loss {loss.item():.4f} lr {lr:.2e} "
                f"{seen / 1e6:.0f} M tokens {time.time() - start:.0f} s")
    return {k: w.detach() for k, w in weights.items()}, seen, time.time() - start


# --------------------------------------------------------------------------- files

def save_tokenizer(folder):
    """The Hugging Face side of the tokenizer, beside tokenizer.model."""
    with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as f:
        json.dump({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True,
                   "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
                   "unk_token": "<unk>", "pad_token": None, "legacy": False,
                   "clean_up_tokenization_spaces": False,
                   "model_max_length": CONFIG["max_position_embeddings"],
                   "chat_template": CHAT_TEMPLATE}, f, indent=2)
        f.write("\n")


def llama(weights):
    """The transformers model with these weights, rounded to fp16."""
    from transformers import LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=True, bos_token_id=BOS,
                                         eos_token_id=EOS))
    left = model.load_state_dict({k: w.half().float() for k, w in weights.items()}, strict=False)
    assert set(left.missing_keys) <= {"lm_head.weight"} and not left.unexpected_keys, left
    model.tie_weights()
    return model


def quantize(w):
    """llm-awq's pseudo quantisation: every operation in fp16. w [N, K] fp16 ->
    q [N, K] and z [N, K/128] in 0..15, s [N, K/128] fp16, with w ~ s (q - z)."""
    g = w.view(w.shape[0], -1, GROUP)
    low, high = g.amin(-1, keepdim=True), g.amax(-1, keepdim=True)
    s = (high - low).clamp(min=1e-5) / 15
    z = (-torch.round(low / s)).clamp(0, 15)
    q = (torch.round(g / s) + z).clamp(0, 15)
    return q.view_as(w).int(), z.squeeze(-1).int(), s.squeeze(-1)


def nibbles(x):
    """[N, 8 m] values 0..15 -> int32 [N, m], the first value in the lowest bits."""
    x = x.view(x.shape[0], -1, 8).long()
    words = (x << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2 ** 31, words - 2 ** 32, words).int()


def awq_dump(weights, path):
    """A real-quantised dump in llm-awq's second packing: int32 qweight [N, K/8], qzeros [N, Wz],
    fp16 scales [N, 8 Wz], Wz = ceil(K/128/8). Returns the weights that it stands for."""
    dump, meant = collections.OrderedDict(), {}
    for name, w in weights.items():
        w = w.half().cpu()
        if not any(name.endswith(f"{linear}.weight") for linear in LINEARS):
            dump[name] = meant[name] = w
            continue
        q, z, s = quantize(w)
        groups = s.shape[1]
        padded = (groups + 7) // 8 * 8
        stem = name[:-len("weight")]
        dump[stem + "qweight"] = nibbles(q)
        dump[stem + "qzeros"] = nibbles(nnf.pad(z, (0, padded - groups)))
        dump[stem + "scales"] = nnf.pad(s, (0, padded - groups))
        meant[name] = ((q.view(w.shape[0], -1, GROUP) - z.unsqueeze(-1)).half()
                       * s.unsqueeze(-1)).view_as(w)
    torch.save(dump, path)
    return meant


# --------------------------------------------------------------------------- evaluation

@torch.no_grad()
def generate(model, prompts, device, penalty=1.0, limit=120):
    """Greedy replies (with their </s>) of a transformers model; prompts are lists of ids."""
    rows = [list(p) for p in prompts]
    alive = list(range(len(rows)))
    while alive:
        longest = max(len(rows[i]) for i in alive)
        batch = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in alive])
        logits = model(batch.to(device)).logits
        for j, i in enumerate(alive):
            scores = logits[j, len(rows[i]) - 1].float()
            if penalty != 1.0:
                past = torch.tensor(sorted(set(rows[i])), device=device)
                scores[past] = torch.where(scores[past] > 0, scores[past] / penalty,
                                           scores[past] * penalty)
            rows[i].append(int(scores.argmax()))
        alive = [i for i in alive if rows[i][-1] != EOS and len(rows[i]) - len(prompts[i]) < limit]
    return [row[len(p):] for row, p in zip(rows, prompts)]


def answer_all(model, tokenizer, cases, device, penalty=1.0, system="", retokenize=False):
    """The replies to the last question of every case; first replies stay in the history as the
    generated ids, or, with retokenize, as a template would render their text."""
    prompts = [tokenizer.prompt(qs[0], system) for _, qs, _ in cases]
    replies = generate(model, prompts, device, penalty)
    second = [i for i, (_, qs, _) in enumerate(cases) if len(qs) == 2]
    history = []
    for i in second:
        reply = replies[i]
        if retokenize:
            reply = tokenizer.reply(tokenizer.decode(reply)) + tokenizer.space + [EOS]
        history.append(prompts[i] + reply + tokenizer.prompt(cases[i][1][1]))
    for i, reply in zip(second, generate(model, history, device, penalty)):
        replies[i] = reply
    return [tokenizer.decode(reply) for reply in replies]


def score(cases, replies):
    """Exact matches, whole reply, by category."""
    table = {}
    for (category, _, expected), reply in zip(cases, replies):
        right, total = table.get(category, (0, 0))
        table[category] = (right + (reply == expected), total + 1)
    table["all"] = tuple(map(sum, zip(*table.values())))
    return table


def look_up(cases, hold, turns):
    """The baseline: the answer of the most similar training question (cosine of tf-idf weighted
    character 2- to 5-grams, hashed). Every turn is there with and without the question before it;
    a second-turn case is looked up with the question before it."""
    torch.set_num_threads(2)
    width = 1 << 18

    def grams(text):
        text = f"  {text.lower()}  ".encode()
        return collections.Counter(zlib.crc32(text[i:i + n]) % width for n in range(2, 6)
                                   for i in range(len(text) - n + 1))

    pool, last = {}, ""
    talk = dialogue.Dialogues(12345, hold)
    talk.clean = True
    for question, answer in itertools.islice(talk.conversation(), turns):
        pool.setdefault(question.lower(), answer)
        pool.setdefault(f"{last} {question}".lower(), answer)
        last = question
    answers = list(pool.values())
    rows, columns, values = array.array("q"), array.array("q"), array.array("f")
    for row, text in enumerate(pool):
        for column, count in grams(text).items():
            rows.append(row)
            columns.append(column)
            values.append(1 + math.log(count))
    rows, columns, values = (torch.from_numpy(np.array(x)) for x in (rows, columns, values))
    idf = torch.log((1 + len(pool)) / (1 + torch.bincount(columns, minlength=width).float())) + 1
    values *= idf[columns]
    norm = torch.zeros(len(pool)).index_add_(0, rows, values ** 2).sqrt()
    found = []
    for _, qs, _ in cases:
        query = torch.zeros(width)
        for column, count in grams(" ".join(qs)).items():
            query[column] = (1 + math.log(count)) * idf[column]
        match = torch.zeros(len(pool)).index_add_(0, rows, values * query[columns])
        found.append(answers[int((match / norm).argmax())])
    return found


def check_against_transformers(tokenizer, folder):
    """Our ids are those of transformers for the rendered conversation."""
    from transformers import LlamaTokenizer
    theirs = LlamaTokenizer.from_pretrained(folder)
    for turns in ([("Hello!", "Hello! How can I help you?"), ("What is 2 + 3?", "2 + 3 = 5."),
                   ("How do you say \u0153uf?  ", None)], [("caf\u00e9 \u2603 [INST]", None)]):
        for system in ("", "Be polite."):
            messages = [{"role": "system", "content": system}] if system else []
            ours = []
            for j, (question, answer) in enumerate(turns):
                messages.append({"role": "user", "content": question})
                ours += tokenizer.prompt(question, "" if j else system)
                if answer:
                    messages.append({"role": "assistant", "content": answer})
                    ours += tokenizer.reply(answer) + tokenizer.space + [EOS]
            ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
            assert ids == ours, (ids, ours)


def evaluate(cases, weights, meant, tokenizer, device):
    """{column: replies}: W16 and W4, and W4 in circumstances that should change little."""
    w16, w4 = llama(weights).to(device), llama(meant).to(device)
    ask = lambda model, **more: answer_all(model, tokenizer, cases, device, **more)
    return {"W16": ask(w16), "W4": ask(w4),
            "W4, history re-tokenised": ask(w4, retokenize=True),
            "W4, with a system text": ask(w4, system="You are a helpful assistant."),
            "W4, repetition penalty 1.1": ask(w4, penalty=1.1)}


def all_held_out_sums():
    """One plain question for every pair of numbers that was kept back, added and subtracted."""
    pairs = [(a, b) for a in range(100) for b in range(a) if dialogue.held_out_sum(a, b)]
    return ([("all held-out sums", [f"What is {a} + {b}?"], f"{a} + {b} = {a + b}.")
             for a, b in pairs] +
            [("all held-out differences", [f"What is {a} - {b}?"], f"{a} - {b} = {a - b}.")
             for a, b in pairs])


def report(cases, columns):
    scores = {label: score(cases, replies) for label, replies in columns.items()}
    for category in scores["W4"]:
        say(f"{category:10}" + "".join(f"  {label} {table[category][0]}/{table[category][1]}"
                                       for label, table in scores.items()))
    misses = [{"questions": qs, "expected": expected, "W4": w4, "W16": w16}
              for (_, qs, expected), w4, w16 in zip(cases, columns["W4"], columns["W16"])
              if not w4 == w16 == expected]
    return scores, misses


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "build"))
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--log", type=int, default=250, help="steps between two log lines")
    parser.add_argument("--pool", type=int, default=200000, help="turns the look-up baseline knows")
    parser.add_argument("--dev", help="more questions, whose wrong answers are shown")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = f"{args.out}/tinychat-demo"
    os.makedirs(folder, exist_ok=True)
    cases = read_questions(os.path.join(HERE, "questions.tsv"))
    hold = held_out(cases)
    check_questions(cases)
    begin = time.time()
    train_tokenizer(f"{folder}/tokenizer.model")
    save_tokenizer(folder)
    tokenizer = Tokenizer(f"{folder}/tokenizer.model")
    check_against_transformers(tokenizer, folder)
    say(f"{dialogue.TABLE.n_facts} facts; tokenizer of {tokenizer.sp.vocab_size()} pieces, "
        f"{time.time() - begin:.0f} s")

    with multiprocessing.get_context("fork").Pool(args.workers) as pool:  # before CUDA starts
        baseline = pool.apply_async(look_up, (cases, hold, args.pool))
        weights, tokens, seconds = train(args, pool, f"{folder}/tokenizer.model", hold, device)
        baseline = baseline.get()
    llama(weights).half().save_pretrained(folder, max_shard_size="12MB", safe_serialization=True)
    meant = awq_dump(weights, f"{args.out}/demo-w4-g128.pt")

    columns = {"look-up": baseline, **evaluate(cases, weights, meant, tokenizer, device)}
    scores, misses = report(cases, columns)
    sums = all_held_out_sums()
    sum_scores = score(sums, answer_all(llama(meant).to(device), tokenizer, sums, device))
    say("W4:", sum_scores)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with open(f"{args.out}/results.json", "w", encoding="utf-8") as f:
        json.dump({"device": name, "steps": args.steps, "tokens": tokens,
                   "training_seconds": round(seconds), "facts": dialogue.TABLE.n_facts,
                   "parameters": sum(w.numel() for w in weights.values()),
                   "exact_match": scores, "W4_on_every_held_out_pair": sum_scores,
                   "misses": misses}, f, indent=1, ensure_ascii=False)
        f.write("\n")
    if args.dev:
        dev = read_questions(args.dev)
        for miss in report(dev, evaluate(dev, weights, meant, tokenizer, device))[1]:
            say(miss)
    say(f"all of it took {time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
