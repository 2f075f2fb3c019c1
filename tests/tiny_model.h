/* tiny_model - writes a small, valid model file of the llama family with random weights, a
 * SentencePiece tokenizer and a chat template, so that tests need no outside data. Written from
 * docs/format.md alone; shares no code with the reader.
 *
 *     tiny_model model = tiny_model_default();
 *     model.group_size = 64;
 *     tiny_model_write(&model, "build/tiny.bin");
 */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tiny_model {
    int group_size; /* 32, 64, 128: W4; 0: binary16; -1: bfloat16 */
    int hidden, intermediate, layers, heads, kv_heads, head_dim; /* multiples of the group size */
    int max_seq_len;
    int sliding_window; /* 0: none */
    int tied;           /* 1: no head of its own */
    int no_tokenizer;   /* 1: token ids only */
    int vocab;          /* of a model without a tokenizer; 0: TINY_VOCAB */
    unsigned seed;      /* of the weights */
    const char *name, *template_name, *first, *first_system, *next, *reply, *system;
    const char *stop_string; /* NULL: none */
    int stop_ids[3];         /* -1 ends the list */
} tiny_model;

/* Ids of the tokenizer that tests may rely on. */
enum { TINY_UNK = 0, TINY_BOS = 1, TINY_EOS = 2, TINY_BYTES = 3, TINY_FIRST_PIECE = 259 };

/* Pieces after the three specials and the 256 bytes; every ASCII character comes before them. */
static const char *const tiny_pieces[] = {
    "\xE2\x96\x81", /* U+2581, the space */
    "\xC3\xA9",
    "\xE2\x82\xAC", /* two and three bytes */
    "\xE2\x96\x81t",
    "he",
    "in",
    "er",
    "an",
    "on",
    "re",
    "\xE2\x96\x81"
    "a",
    "\xE2\x96\x81the",
    "ll",
    "lo",
    "llo",
    "hello",
    "\xE2\x96\x81hello",
    "\xE2\x96\x81w",
    "or",
    "ld",
    "orld",
    "\xE2\x96\x81world",
    "US",
    "ER",
    "USER",
    "\xE2\x96\x81USER",
    "AS",
    "SI",
    "ST",
    "AN",
    "ASSI",
    "ANT",
    "STANT",
    "ASSISTANT",
    "\xE2\x96\x81"
    "ASSISTANT",
    "\xE2\x96\x81\xE2\x96\x81",
    "##",
    "###",
    "\xE2\x96\x81###",
    "en",
    "end",
    "nd",
};

enum {
    TINY_ASCII = 0x7F - 0x21,
    TINY_PIECES = (int)(sizeof tiny_pieces / sizeof *tiny_pieces),
    TINY_VOCAB = TINY_FIRST_PIECE + TINY_ASCII + TINY_PIECES
};

static tiny_model tiny_model_default(void) {
    tiny_model model;
    memset(&model, 0, sizeof model);
    model.group_size = 32;
    model.hidden = 128;
    model.intermediate = 256;
    model.layers = 2;
    model.heads = 4;
    model.kv_heads = 2;
    model.head_dim = 32;
    model.max_seq_len = 512;
    model.seed = 1;
    model.name = "tiny";
    model.template_name = "tiny-chat";
    model.first = "USER: {user} ASSISTANT:";
    model.first_system = "{system} USER: {user} ASSISTANT:";
    model.next = "USER: {user} ASSISTANT:";
    model.reply = " {reply}</s>";
    model.system = "";
    model.stop_ids[0] = TINY_EOS;
    model.stop_ids[1] = -1;
    return model;
}

static int tiny_vocab(const tiny_model *model) {
    return model->no_tokenizer && model->vocab ? model->vocab : TINY_VOCAB;
}

/* The text of a piece; `text` has room for 8 bytes where it is made up. */
static const char *tiny_piece(int id, char text[8]) {
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    if (id < 3) return special[id];
    if (id < TINY_FIRST_PIECE)
        snprintf(text, 8, "<0x%02X>", (unsigned)(id - TINY_BYTES) & 255u);
    else if (id < TINY_FIRST_PIECE + TINY_ASCII)
        text[0] = (char)(0x21 + id - TINY_FIRST_PIECE), text[1] = 0;
    else
        return tiny_pieces[id - TINY_FIRST_PIECE - TINY_ASCII];
    return text;
}

/* The id of a piece, -1 if there is none. */
static inline int tiny_id(const char *piece) {
    char text[8];
    for (int id = 0; id < TINY_VOCAB; id++)
        if (strcmp(tiny_piece(id, text), piece) == 0) return id;
    return -1;
}

/* ---- bytes ---- */

typedef struct tiny_bytes {
    unsigned char *data;
    size_t len, cap;
} tiny_bytes;

static void tiny_put(tiny_bytes *out, const void *bytes, size_t len) {
    if (out->len + len > out->cap) {
        out->cap = 2 * (out->len + len) + 4096;
        out->data = realloc(out->data, out->cap);
        if (!out->data) abort();
    }
    if (len) memcpy(out->data + out->len, bytes, len);
    out->len += len;
}
static void tiny_u8(tiny_bytes *out, unsigned value) {
    unsigned char byte = (unsigned char)value;
    tiny_put(out, &byte, 1);
}
static void tiny_u32(tiny_bytes *out, uint32_t value) {
    tiny_put(out, &value, 4);
}
static void tiny_u64(tiny_bytes *out, uint64_t value) {
    tiny_put(out, &value, 8);
}
static void tiny_f32(tiny_bytes *out, float value) {
    tiny_put(out, &value, 4);
}

static uint32_t tiny_crc(const void *bytes, size_t len) {
    const unsigned char *p = bytes;
    uint32_t crc = 0xFFFFFFFFu;
    while (len--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
    }
    return ~crc;
}

static uint32_t tiny_random(uint64_t *state) { /* Knuth's 64-bit congruential generator */
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}
/* Uniform in (-1, 1). */
static double tiny_uniform(uint64_t *state) {
    return (double)tiny_random(state) / 1073741824.0 - 1.0 + 1e-10;
}

/* A number of normal size as binary16, cut. */
static unsigned tiny_half(double value) {
    int exponent;
    double fraction = frexp(fabs(value), &exponent); /* in [0.5, 1) */
    if (value == 0 || exponent < -13) return 0;
    return (value < 0 ? 0x8000u : 0u) | (unsigned)(exponent + 14) << 10 |
           ((unsigned)(fraction * 2048) & 0x3FFu);
}
static unsigned tiny_bfloat(double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    return bits >> 16;
}

/* ---- metadata ---- */

typedef struct tiny_meta {
    tiny_bytes bytes;
    uint32_t count;
} tiny_meta;

static void tiny_key(tiny_meta *meta, const char *key, uint32_t type, uint64_t count) {
    tiny_u32(&meta->bytes, (uint32_t)strlen(key));
    tiny_u32(&meta->bytes, type);
    tiny_u64(&meta->bytes, count);
    tiny_put(&meta->bytes, key, strlen(key));
    meta->count++;
}
static void tiny_key_u32(tiny_meta *meta, const char *key, int value) {
    tiny_key(meta, key, 1, 1);
    tiny_u32(&meta->bytes, (uint32_t)value);
}
static void tiny_key_f64(tiny_meta *meta, const char *key, double value) {
    tiny_key(meta, key, 2, 1);
    tiny_put(&meta->bytes, &value, 8);
}
static void tiny_key_text(tiny_meta *meta, const char *key, const char *text) {
    tiny_key(meta, key, 3, strlen(text));
    tiny_put(&meta->bytes, text, strlen(text));
}

static void tiny_tokenizer(tiny_meta *meta) {
    char text[8];
    tiny_key_text(meta, "tokenizer.type", "spm-bpe");
    tiny_key(meta, "tokenizer.pieces", 5, TINY_VOCAB);
    for (int id = 0; id < TINY_VOCAB; id++) {
        const char *piece = tiny_piece(id, text);
        tiny_u32(&meta->bytes, (uint32_t)strlen(piece));
        tiny_put(&meta->bytes, piece, strlen(piece));
    }
    tiny_key(meta, "tokenizer.scores", 4, TINY_VOCAB);
    for (int id = 0; id < TINY_VOCAB; id++)
        tiny_f32(&meta->bytes, id < TINY_FIRST_PIECE ? 0.0f : (float)(TINY_FIRST_PIECE - id));
    tiny_key(meta, "tokenizer.types", 3, TINY_VOCAB);
    for (int id = 0; id < TINY_VOCAB; id++)
        tiny_u8(&meta->bytes, id == TINY_UNK          ? 2
                              : id < TINY_BYTES       ? 3
                              : id < TINY_FIRST_PIECE ? 6
                                                      : 1);
    tiny_key_u32(meta, "tokenizer.unk_id", TINY_UNK);
    tiny_key_u32(meta, "tokenizer.bos_id", TINY_BOS);
    tiny_key_u32(meta, "tokenizer.eos_id", TINY_EOS);
    tiny_key_u32(meta, "tokenizer.add_bos", 1);
    tiny_key_u32(meta, "tokenizer.dummy_prefix", 1);
    tiny_key_u32(meta, "tokenizer.legacy", 0);
    tiny_key_text(meta, "tokenizer.unk_surface", " \xE2\x81\x87 ");
}

static void tiny_chat(tiny_meta *meta, const tiny_model *model) {
    tiny_key_text(meta, "chat.template", model->template_name);
    tiny_key_text(meta, "chat.first", model->first);
    tiny_key_text(meta, "chat.first_system", model->first_system);
    tiny_key_text(meta, "chat.next", model->next);
    tiny_key_text(meta, "chat.reply", model->reply);
    tiny_key_text(meta, "chat.system", model->system);
    uint32_t stops = 0;
    while (stops < 3 && model->stop_ids[stops] >= 0) stops++;
    tiny_key(meta, "chat.stop_ids", 1, stops);
    for (uint32_t i = 0; i < stops; i++) tiny_u32(&meta->bytes, (uint32_t)model->stop_ids[i]);
    tiny_key(meta, "chat.stop_strings", 5, model->stop_string ? 1 : 0);
    if (model->stop_string) {
        tiny_u32(&meta->bytes, (uint32_t)strlen(model->stop_string));
        tiny_put(&meta->bytes, model->stop_string, strlen(model->stop_string));
    }
}

static tiny_meta tiny_metadata(const tiny_model *model) {
    tiny_meta meta;
    memset(&meta, 0, sizeof meta);
    tiny_key_text(&meta, "general.name", model->name);
    tiny_key_text(&meta, "general.source", "random numbers");
    tiny_key_text(&meta, "arch.family", "llama");
    tiny_key_u32(&meta, "arch.hidden_size", model->hidden);
    tiny_key_u32(&meta, "arch.intermediate_size", model->intermediate);
    tiny_key_u32(&meta, "arch.layers", model->layers);
    tiny_key_u32(&meta, "arch.heads", model->heads);
    tiny_key_u32(&meta, "arch.kv_heads", model->kv_heads);
    tiny_key_u32(&meta, "arch.head_dim", model->head_dim);
    tiny_key_u32(&meta, "arch.vocab_size", tiny_vocab(model));
    tiny_key_u32(&meta, "arch.max_seq_len", model->max_seq_len);
    if (model->sliding_window) tiny_key_u32(&meta, "arch.sliding_window", model->sliding_window);
    tiny_key_f64(&meta, "arch.norm_eps", 1e-5);
    tiny_key_f64(&meta, "arch.rope_theta", 10000);
    if (model->no_tokenizer) {
        tiny_key_text(&meta, "tokenizer.type", "none");
    } else {
        tiny_tokenizer(&meta);
        tiny_chat(&meta, model);
    }
    return meta;
}

/* ---- tensors ---- */

typedef struct tiny_file {
    tiny_bytes table, data; /* data begins at a multiple of 256 */
    uint32_t tensors;
    uint64_t random;
} tiny_file;

/* One unit of 16 rows x g columns with weights of about `spread`; rows from `rows` on are empty. */
static void tiny_unit(tiny_file *file, int g, int rows, double spread) {
    unsigned char unit[8 * 128 + 64];
    memset(unit, 0, sizeof unit);
    for (int w = 0; w < g / 16; w++)
        for (int lane = 0; lane < 32; lane++) {
            uint32_t word = tiny_random(&file->random) ^ tiny_random(&file->random) << 16;
            int at = g == 32 ? 8 * lane + 4 * w
                     : w < 4 ? 16 * lane + 4 * w
                             : 512 + 16 * lane + 4 * (w - 4);
            memcpy(unit + at, &word, 4);
        }
    for (int row = 0; row < 16; row++) {
        uint16_t scale = (uint16_t)tiny_half(spread * (1.5 + tiny_uniform(&file->random)) / 12);
        uint16_t zero = (uint16_t)tiny_half(6 + tiny_random(&file->random) % 4);
        unsigned char *at = unit + 8 * g + 8 * (row & 7) + 4 * (row >> 3);
        if (row < rows) memcpy(at, &scale, 2);
        memcpy(at + 2, &zero, 2);
    }
    tiny_put(&file->data, unit, (size_t)(8 * g + 64));
}

/* type as in the file; `about` is the centre and `spread` the half-width of the random numbers. */
static void tiny_tensor(tiny_file *file, const char *name, uint32_t type, int g, int rows,
                        int columns, double about, double spread) {
    while (file->data.len % 256) tiny_u8(&file->data, 0);
    size_t start = file->data.len;
    if (type == 4) {
        for (int block = 0; block < rows; block += 16)
            for (int j = 0; j < columns / g; j++) tiny_unit(file, g, rows - block, spread);
    } else {
        for (int i = 0; i < rows * columns; i++) {
            double value = about + spread * tiny_uniform(&file->random);
            uint16_t half = (uint16_t)(type == 2 ? tiny_half(value) : tiny_bfloat(value));
            if (type == 1)
                tiny_f32(&file->data, (float)value);
            else
                tiny_put(&file->data, &half, 2);
        }
    }
    tiny_u32(&file->table, (uint32_t)strlen(name));
    tiny_u32(&file->table, type);
    tiny_u32(&file->table, (uint32_t)g);
    tiny_u32(&file->table, columns == 1 ? 1 : 2);
    tiny_u64(&file->table, (uint64_t)rows);
    tiny_u64(&file->table, (uint64_t)columns);
    tiny_u64(&file->table, start); /* moved by tiny_model_write */
    tiny_u64(&file->table, file->data.len - start);
    tiny_u32(&file->table, tiny_crc(file->data.data + start, file->data.len - start));
    tiny_put(&file->table, name, strlen(name));
    file->tensors++;
}

static void tiny_tensors(tiny_file *file, const tiny_model *m) {
    int g = m->group_size > 0 ? m->group_size : 0;
    uint32_t table = m->group_size < 0 ? 3 : 2, matrix = g ? 4 : table;
    char name[32];
    int attention = m->heads * m->head_dim, qkv = attention + 2 * m->kv_heads * m->head_dim;
    const struct {
        const char *name;
        int rows, columns; /* 1 column: a norm */
    } parts[] = {{"attn_norm", m->hidden, 1},
                 {"qkv", qkv, m->hidden},
                 {"o", m->hidden, attention},
                 {"mlp_norm", m->hidden, 1},
                 {"gate_up", 2 * m->intermediate, m->hidden},
                 {"down", m->hidden, m->intermediate}};
    tiny_tensor(file, "embed", table, 0, tiny_vocab(m), m->hidden, 0, 1);
    for (int layer = 0; layer < m->layers; layer++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            snprintf(name, sizeof name, "%d.%s", layer, parts[i].name);
            if (parts[i].columns == 1)
                tiny_tensor(file, name, 1, 0, parts[i].rows, 1, 1, 0.3);
            else
                tiny_tensor(file, name, matrix, g, parts[i].rows, parts[i].columns, 0,
                            2 / sqrt(parts[i].columns));
        }
    tiny_tensor(file, "norm", 1, 0, m->hidden, 1, 1, 0.3);
    if (!m->tied)
        tiny_tensor(file, "head", table, 0, tiny_vocab(m), m->hidden, 0, 5 / sqrt(m->hidden));
}

/* ---- the file ---- */

/* Adds `base` to every offset in the table. */
static void tiny_move_offsets(tiny_bytes *table, uint64_t base) {
    for (size_t at = 0; at < table->len;) {
        uint32_t name_len;
        uint64_t offset;
        memcpy(&name_len, table->data + at, 4);
        memcpy(&offset, table->data + at + 32, 8);
        offset += base;
        memcpy(table->data + at + 32, &offset, 8);
        at += 52 + name_len;
    }
}

/* Writes the model file. Returns 0, or -1 if it cannot be written. */
static int tiny_model_write(const tiny_model *model, const char *path) {
    tiny_meta meta = tiny_metadata(model);
    tiny_file file;
    memset(&file, 0, sizeof file);
    file.random = model->seed;
    tiny_tensors(&file, model);
    uint64_t behind = 64 + meta.bytes.len + file.table.len, base = (behind + 255) / 256 * 256;
    tiny_move_offsets(&file.table, base);

    tiny_bytes out, rest;
    memset(&out, 0, sizeof out);
    memset(&rest, 0, sizeof rest);
    tiny_u64(&rest, base + file.data.len); /* header from byte 16 on */
    tiny_u64(&rest, 64);
    tiny_u64(&rest, meta.bytes.len);
    tiny_u32(&rest, meta.count);
    tiny_u32(&rest, tiny_crc(meta.bytes.data, meta.bytes.len));
    tiny_u32(&rest, file.tensors);
    tiny_u32(&rest, tiny_crc(file.table.data, file.table.len));
    tiny_u64(&rest, file.table.len);
    tiny_put(&out, "TINYCHAT", 8);
    tiny_u32(&out, 1);
    tiny_u32(&out, tiny_crc(rest.data, rest.len));
    tiny_put(&out, rest.data, rest.len);
    tiny_put(&out, meta.bytes.data, meta.bytes.len);
    tiny_put(&out, file.table.data, file.table.len);
    while (out.len < base) tiny_u8(&out, 0);
    tiny_put(&out, file.data.data, file.data.len);

    FILE *stream = fopen(path, "wb");
    int good = stream && fwrite(out.data, 1, out.len, stream) == out.len;
    if (stream && fclose(stream)) good = 0;
    free(out.data);
    free(rest.data);
    free(meta.bytes.data);
    free(file.table.data);
    free(file.data.data);
    return good ? 0 : -1;
}

#endif /* TINY_MODEL_H */
