/* make_synthetic - writes a checkpoint of any size with random weights, to measure convert with:
 *
 *     cc -O2 -I. -Isrc -Iconvert -Itests tests/make_synthetic.c src/base.c -o make_synthetic
 *     ./make_synthetic DIR [PACKING [LAYERS [HIDDEN [INTERMEDIATE [HEADS [VOCAB [GROUP]]]]]]]
 *     convert/convert --hf DIR --awq DIR/weights.pt --no-tokenizer -o model.bin
 *
 * PACKING is A, B or C (docs: packings of llm-awq). The default is LLaMA-2-7B's shape in packing B:
 * 3.9 GB. DIR (which must exist) gets config.json and weights.pt, a zip as torch.save writes it:
 * stored members with checksums, data descriptors, 64-byte alignment, a zip64 directory.
 */
#include "src/base.h"

typedef struct synthetic {
    FILE *file;
    uint64_t at; /* bytes written */
    tc__buf directory, pickle;
    uint64_t members, storages;
    uint64_t random;
    char packing;
    unsigned layers, hidden, intermediate, heads, vocab, group;
} synthetic;

enum { FILL_BITS, FILL_SCALES, FILL_SAME_SCALES, FILL_SCALED_ZEROS, FILL_WEIGHTS };

typedef struct tensor {
    char name[96];
    const char *storage; /* torch's class */
    uint64_t rows, columns,
        used;       /* columns 0: a vector; used: rows or columns that are no padding */
    unsigned bytes; /* of an element */
    int fill;
} tensor;

static void die(const char *what) {
    fprintf(stderr, "make_synthetic: %s\n", what);
    exit(1);
}

static void put(synthetic *s, const void *bytes, size_t len) {
    if (len && fwrite(bytes, 1, len, s->file) != len) die("cannot write");
    s->at += len;
}

static void add(tc__buf *buf, uint64_t value, size_t bytes) {
    tc__buf_add(buf, &value, bytes);
}

/* ---- zip ---- */

/* A local header as torch writes it: no sizes, and an extra field that aligns the data to 64. */
static void begin_member(synthetic *s, const char *name) {
    tc__buf header = {0};
    size_t len = strlen(name), pad = 64 - (s->at + 30 + len + 4) % 64;
    add(&header, 0x04034b50, 4), add(&header, 0, 2), add(&header, 0x0808, 2);
    for (int i = 0; i < 3; i++) add(&header, 0, 2); /* stored; no time, no date */
    for (int i = 0; i < 3; i++) add(&header, 0, 4); /* checksum and sizes follow the data */
    add(&header, len, 2), add(&header, pad + 4, 2);
    tc__buf_str(&header, name);
    add(&header, 0x4246, 2), add(&header, pad, 2);
    for (size_t i = 0; i < pad; i++) tc__buf_str(&header, "Z");
    put(s, header.data, header.len);
    tc__buf_free(&header);
}

static void end_member(synthetic *s, const char *name, uint64_t header_at, uint64_t size,
                       uint32_t crc) {
    tc__buf descriptor = {0}, *d = &s->directory;
    bool big = size >= 0xffffffffu, far = header_at >= 0xffffffffu;
    add(&descriptor, 0x08074b50, 4), add(&descriptor, crc, 4);
    add(&descriptor, size, big ? 8 : 4), add(&descriptor, size, big ? 8 : 4);
    put(s, descriptor.data, descriptor.len);
    tc__buf_free(&descriptor);
    add(d, 0x02014b50, 4), add(d, 0, 4), add(d, 0x0808, 2), add(d, 0, 6), add(d, crc, 4);
    add(d, big ? 0xffffffffu : size, 4), add(d, big ? 0xffffffffu : size, 4);
    add(d, strlen(name), 2);
    add(d, big || far ? 4 + 16u * big + 8u * far : 0, 2), add(d, 0, 2);
    add(d, 0, 4), add(d, 0, 4), add(d, far ? 0xffffffffu : header_at, 4);
    tc__buf_str(d, name);
    if (big || far) add(d, 1, 2), add(d, 16u * big + 8u * far, 2);
    if (big) add(d, size, 8), add(d, size, 8);
    if (far) add(d, header_at, 8);
    s->members++;
}

static void small_member(synthetic *s, const char *name, const void *bytes, size_t len) {
    uint64_t at = s->at;
    begin_member(s, name);
    put(s, bytes, len);
    end_member(s, name, at, len, tc__crc32(0, bytes, len));
}

static void end_zip(synthetic *s) {
    uint64_t at = s->at, size = s->directory.len, end = at + size;
    tc__buf *d = &s->directory;
    add(d, 0x06064b50, 4), add(d, 44, 8), add(d, 0, 4), add(d, 0, 4), add(d, 0, 4);
    add(d, s->members, 8), add(d, s->members, 8), add(d, size, 8), add(d, at, 8);
    add(d, 0x07064b50, 4), add(d, 0, 4), add(d, end, 8), add(d, 1, 4);
    add(d, 0x06054b50, 4), add(d, 0, 4);
    add(d, s->members < 0xffff ? s->members : 0xffff, 2);
    add(d, s->members < 0xffff ? s->members : 0xffff, 2);
    add(d, size < 0xffffffffu ? size : 0xffffffffu, 4);
    add(d, at < 0xffffffffu ? at : 0xffffffffu, 4), add(d, 0, 2);
    put(s, d->data, d->len);
}

/* ---- pickle ---- */

static void pickle_text(tc__buf *p, const char *text) {
    tc__buf_str(p, "X");
    add(p, strlen(text), 4);
    tc__buf_str(p, text);
}

static void pickle_int(tc__buf *p, uint64_t value) {
    tc__buf_str(p, "J");
    add(p, value, 4);
}

/* One entry of the state dict, its storage being member number s->storages. */
static void pickle_tensor(synthetic *s, const tensor *t) {
    char key[24];
    tc__buf *p = &s->pickle;
    snprintf(key, sizeof key, "%llu", (unsigned long long)s->storages);
    pickle_text(p, t->name);
    tc__buf_printf(p, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_text(p, "storage");
    tc__buf_printf(p, "ctorch\n%s\n", t->storage);
    pickle_text(p, key);
    pickle_text(p, "cpu");
    pickle_int(p, t->rows * (t->columns ? t->columns : 1));
    tc__buf_str(p, "tQK");
    add(p, 0, 1);
    tc__buf_str(p, "(");
    pickle_int(p, t->rows);
    if (t->columns) pickle_int(p, t->columns);
    tc__buf_str(p, "t(");
    if (t->columns) pickle_int(p, t->columns);
    pickle_int(p, 1);
    tc__buf_str(p, "t\x89"
                   "ccollections\nOrderedDict\n)RtRs");
}

/* ---- tensors ---- */

static uint64_t next_random(synthetic *s) { /* xorshift64 */
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random;
}

/* A number of a binary16 tensor: a scale from 2^-9 to 2^-7, always 2^-9, or minus 0 to 15 of it. */
static uint16_t random_half(synthetic *s, int fill) {
    uint64_t bits = next_random(s);
    if (fill == FILL_SAME_SCALES) return 0x1800;
    if (fill == FILL_SCALED_ZEROS) return tc__f32_to_f16(-(float)(bits % 16) / 512);
    return (uint16_t)(0x1800 + bits % 0x800);
}

/* One row of a tensor; padding of scales and scaled zeros is zero. */
static void fill_row(synthetic *s, const tensor *t, uint64_t row, uint8_t *out, size_t bytes) {
    for (size_t i = 0; t->fill == FILL_BITS && i < bytes; i += 8) {
        uint64_t bits = next_random(s);
        memcpy(out + i, &bits, bytes - i < 8 ? bytes - i : 8);
    }
    for (size_t i = 0; t->fill != FILL_BITS && i < bytes / 2; i++) {
        uint16_t value = random_half(s, t->fill);
        if (t->fill != FILL_WEIGHTS && (s->packing == 'B' ? i : row) >= t->used) value = 0;
        memcpy(out + 2 * i, &value, sizeof value);
    }
}

static void write_tensor(synthetic *s, const tensor *t) {
    char name[48];
    size_t row_bytes = (size_t)(t->columns ? t->columns : 1) * t->bytes;
    uint8_t *row = malloc(row_bytes);
    uint64_t at = s->at;
    uint32_t crc = 0;
    if (!row) die("out of memory");
    snprintf(name, sizeof name, "weights/data/%llu", (unsigned long long)s->storages);
    begin_member(s, name);
    for (uint64_t i = 0; i < t->rows; i++) {
        fill_row(s, t, i, row, row_bytes);
        crc = tc__crc32(crc, row, row_bytes);
        put(s, row, row_bytes);
    }
    end_member(s, name, at, t->rows * row_bytes, crc);
    s->storages++;
    free(row);
}

/* Data are written after the pickle that describes them, so that everything is walked twice. */
static void visit(synthetic *s, bool write, const char *name, const char *storage, unsigned bytes,
                  int fill, uint64_t rows, uint64_t columns, uint64_t used) {
    tensor t = {"", storage, rows, columns, used, bytes, fill};
    snprintf(t.name, sizeof t.name, "%s", name);
    if (write) {
        write_tensor(s, &t);
    } else {
        pickle_tensor(s, &t);
        s->storages++;
    }
}

static void visit_plain(synthetic *s, bool write, const char *name, uint64_t rows,
                        uint64_t columns) {
    visit(s, write, name, "HalfStorage", 2, FILL_WEIGHTS, rows, columns, 0);
}

static void visit_linear(synthetic *s, bool write, unsigned layer, const char *module, uint64_t n,
                         uint64_t k) {
    char q[96], z[96], scales[96];
    uint64_t groups = k / s->group, multiple = s->group >= 128 ? 1 : s->group == 64 ? 2 : 4;
    uint64_t words = ((groups + 7) / 8 + multiple - 1) / multiple * multiple, wide = 8 * words;
    snprintf(q, sizeof q, "model.layers.%u.%s.qweight", layer, module);
    snprintf(z, sizeof z, "model.layers.%u.%s.%s", layer, module,
             s->packing == 'C' ? "scaled_zeros" : "qzeros");
    snprintf(scales, sizeof scales, "model.layers.%u.%s.scales", layer, module);
    if (s->packing == 'A') {
        visit(s, write, q, "IntStorage", 4, FILL_BITS, k, n / 8, 0);
        visit(s, write, z, "IntStorage", 4, FILL_BITS, groups, n / 8, 0);
        visit(s, write, scales, "HalfStorage", 2, FILL_SCALES, groups, n, groups);
    } else if (s->packing == 'B') {
        visit(s, write, q, "IntStorage", 4, FILL_BITS, n, k / 8, 0);
        visit(s, write, z, "IntStorage", 4, FILL_BITS, n, words, 0);
        visit(s, write, scales, "HalfStorage", 2, FILL_SCALES, n, wide, groups);
    } else {
        visit(s, write, q, "ShortStorage", 2, FILL_BITS, n / 4, k, 0);
        visit(s, write, z, "HalfStorage", 2, FILL_SCALED_ZEROS, wide, n, groups);
        visit(s, write, scales, "HalfStorage", 2, FILL_SAME_SCALES, wide, n, groups);
    }
}

static void visit_all(synthetic *s, bool write) {
    char name[96];
    visit_plain(s, write, "model.embed_tokens.weight", s->vocab, s->hidden);
    for (unsigned i = 0; i < s->layers; i++) {
        static const char *const square[] = {"self_attn.q_proj", "self_attn.k_proj",
                                             "self_attn.v_proj", "self_attn.o_proj"};
        for (int j = 0; j < 4; j++) visit_linear(s, write, i, square[j], s->hidden, s->hidden);
        visit_linear(s, write, i, "mlp.gate_proj", s->intermediate, s->hidden);
        visit_linear(s, write, i, "mlp.up_proj", s->intermediate, s->hidden);
        visit_linear(s, write, i, "mlp.down_proj", s->hidden, s->intermediate);
        snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
        visit_plain(s, write, name, s->hidden, 0);
        snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
        visit_plain(s, write, name, s->hidden, 0);
    }
    visit_plain(s, write, "model.norm.weight", s->hidden, 0);
    visit_plain(s, write, "lm_head.weight", s->vocab, s->hidden);
}

static void write_config(const synthetic *s, const char *dir) {
    char path[1024];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *file = fopen(path, "w");
    if (!file) die("cannot create config.json; does the folder exist?");
    fprintf(file,
            "{\"model_type\": \"llama\", \"hidden_size\": %u, \"intermediate_size\": %u,\n"
            " \"num_hidden_layers\": %u, \"num_attention_heads\": %u, \"vocab_size\": %u,\n"
            " \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-05, \"eos_token_id\": 2}\n",
            s->hidden, s->intermediate, s->layers, s->heads, s->vocab);
    if (fclose(file)) die("cannot write config.json");
}

int main(int argc, char **argv) {
    synthetic s = {.packing = 'B',
                   .random = 88172645463325252u,
                   .layers = 32,
                   .hidden = 4096,
                   .intermediate = 11008,
                   .heads = 32,
                   .vocab = 32000,
                   .group = 128};
    unsigned *sizes[] = {&s.layers, &s.hidden, &s.intermediate, &s.heads, &s.vocab, &s.group};
    char path[1024];
    if (argc < 2 || argc > 9) die("usage: make_synthetic DIR [PACKING [LAYERS ...]]");
    if (argc > 2) s.packing = argv[2][0];
    for (int i = 3; i < argc; i++) *sizes[i - 3] = (unsigned)strtoul(argv[i], NULL, 10);
    write_config(&s, argv[1]);
    snprintf(path, sizeof path, "%s/weights.pt", argv[1]);
    s.file = fopen(path, "wb");
    if (!s.file) die("cannot create weights.pt");
    tc__buf_add(&s.pickle, "\x80\x02}", 3);
    visit_all(&s, false);
    tc__buf_str(&s.pickle, ".");
    if (s.pickle.failed) die("out of memory");
    small_member(&s, "weights/data.pkl", s.pickle.data, s.pickle.len);
    s.storages = 0;
    visit_all(&s, true);
    small_member(&s, "weights/version", "3\n", 2);
    end_zip(&s);
    if (s.directory.failed || fclose(s.file)) die("cannot write weights.pt");
    tc__buf_free(&s.pickle);
    tc__buf_free(&s.directory);
    return 0;
}
