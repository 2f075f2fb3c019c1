/* Damaged input of every kind: cut short at every boundary, bits flipped, contents that contradict
 * themselves. Nothing may crash (the sanitizer build runs this too), an error is given wherever the
 * format promises one, and convert leaves nothing behind.
 */
#include "program.h"
#include "convert/checkpoint.h"
#include "convert/hf_config.h"
#include "convert/tokenizer_folder.h"
#include "src/model_file.h"
#include "test.h"

#define SMALL "tests/data/llama-small/"

/* ---- bytes, files, random numbers ---- */

static uint64_t random_state;

static uint64_t random_next(void) { /* xorshift64* */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

static size_t random_below(size_t n) {
    return (size_t)(random_next() >> 11) % n;
}

/* A file's contents; data NULL if it cannot be read. Free with tc__buf_free. */
static tc__buf read_file(const char *path) {
    tc__buf bytes = {0};
    char piece[1 << 14];
    size_t n;
    FILE *file = fopen(path, "rb");
    while (file && (n = fread(piece, 1, sizeof piece, file)) > 0) tc__buf_add(&bytes, piece, n);
    if (file) fclose(file);
    return bytes;
}

/* Overwrites what is there before it sets the size: some file systems wait for the disk when a file
 * is emptied and written again. */
static bool write_file(const char *path, const void *bytes, size_t n) {
    int file = open(path, O_WRONLY | O_CREAT, 0600);
    bool ok = file >= 0 && write(file, bytes, n) == (ssize_t)n && ftruncate(file, (off_t)n) == 0;
    return file >= 0 && close(file) == 0 && ok;
}

/* Overwrites bytes of a file in place. */
static void patch_file(const char *path, size_t at, const void *bytes, size_t n) {
    int file = open(path, O_WRONLY);
    CHECK(file >= 0 && pwrite(file, bytes, n, (off_t)at) == (ssize_t)n);
    if (file >= 0) close(file);
}

/* The files in a folder, not counting it and its parent. */
static int count_files(const char *folder) {
    DIR *dir = opendir(folder);
    int n = -2;
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}

/* One line says what is wrong; remarks about the parts that were in order may stand before it. */
static bool one_line(const char *text) {
    static const char note[] = "convert: note: ";
    size_t len;
    while (!strncmp(text, note, sizeof note - 1) && strchr(text, '\n'))
        text = strchr(text, '\n') + 1;
    len = strlen(text);
    return len > 1 && strchr(text, '\n') == text + len - 1;
}

/* A temporary folder with two inside: `in` for damaged input, `out` for output. */
typedef struct sandbox {
    char root[PROGRAM_PATH], in[PROGRAM_PATH + 8], out[PROGRAM_PATH + 8];
    char model[PROGRAM_PATH + 24]; /* out/model.bin */
} sandbox;

static bool sandbox_open(sandbox *box) {
    if (!program_folder(box->root)) return false;
    snprintf(box->in, sizeof box->in, "%s/in", box->root);
    snprintf(box->out, sizeof box->out, "%s/out", box->root);
    snprintf(box->model, sizeof box->model, "%s/model.bin", box->out);
    return mkdir(box->in, 0700) == 0 && mkdir(box->out, 0700) == 0;
}

static void sandbox_close(sandbox *box) {
    program_remove_folder(box->in);
    program_remove_folder(box->out);
    program_remove_folder(box->root);
}

/* Copies the files of a folder (one level) into in/. */
static void sandbox_copy(sandbox *box, const char *folder) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    char path[2 * PROGRAM_PATH];
    while (dir && (entry = readdir(dir)) != NULL) {
        tc__buf bytes;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        bytes = read_file(path);
        snprintf(path, sizeof path, "%s/%s", box->in, entry->d_name);
        CHECK(write_file(path, bytes.data, bytes.len));
        tc__buf_free(&bytes);
    }
    if (dir) closedir(dir);
}

/* out/model.bin: group size 32, with a tokenizer. */
static bool make_model(sandbox *box) {
    char messages[4096];
    const char *argv[] = {program_convert(), "--hf", SMALL "hf", "--awq",
                          SMALL "g32-b.pt",  "-o",   box->model, NULL};
    int status = program_run(argv, NULL, 0, messages, sizeof messages);
    CHECK_MSG(status == 0, "convert: exit status %d\n%s", status, messages);
    return status == 0;
}

/* ---- model.bin ---- */

/* Does with a model what a program would: evaluates, samples, tokenizes, renders a conversation.
 * The results do not matter. */
static void use_model(tc_model *model) {
    tc_model_info info = tc_model_get_info(model);
    static const char text[] = "hello </s> \xff\xe2\x96 how are you <0x41>";
    tc_session_params params = tc_session_default_params();
    tc_chat_params chat_params = tc_chat_default_params();
    tc_session *session = NULL;
    tc_chat *chat = NULL;
    int32_t ids[64], id;
    char out[64];
    size_t n;
    tc_error err;
    params.ctx_size = info.max_seq_len < 16 ? 0 : 16;
    if (tc_session_open(model, &params, &session, &err) == TC_OK) {
        for (id = 0; id < 3; id++) ids[id] = (id * 101 + 1) % info.vocab_size;
        if (tc_eval(session, ids, 3, &err) == TC_OK) tc_sample(session, NULL, &id, &err);
        tc_session_close(session);
    }
    if (tc_tokenize(model, text, sizeof text - 1, TC_TOKENIZE_BOS | TC_TOKENIZE_SPECIAL, ids, 64,
                    &n, &err) == TC_OK)
        tc_detokenize(model, ids, n < 64 ? n : 64, out, sizeof out, &n, &err);
    chat_params.ctx_size = info.max_seq_len < 64 ? 0 : 64;
    chat_params.max_tokens = 2;
    if (tc_chat_open(model, &chat_params, &chat, &err) == TC_OK) {
        tc_chat_send(chat, text, sizeof text - 1, NULL, NULL, NULL, &err);
        tc_chat_render(chat, text, sizeof text - 1, ids, 64, &n, &err);
        tc_chat_close(chat);
    }
}

/* Opens, uses and closes. Returns the code of tc_model_open and, if that is TC_OK, that of
 * tc_model_verify in *verified. */
static int try_model(const char *path, bool use, int *verified) {
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_error err;
    int code;
    params.threads = 1;
    code = tc_model_open(path, &params, &model, &err);
    *verified = -1;
    if (code != TC_OK) {
        CHECK(model == NULL && err.code == code && err.message[0] && !strchr(err.message, '\n'));
        return code;
    }
    *verified = tc_model_verify(model, NULL, NULL, &err);
    if (use) use_model(model);
    tc_model_close(model);
    return code;
}

typedef struct layout_of_model {
    size_t meta_end, table_end, size;
    tc__model_file file;
} model_layout;

static bool model_layout_open(model_layout *l, const char *path) {
    tc_error err;
    uint64_t meta, table;
    if (tc__model_file_open(path, &l->file, &err)) return false;
    memcpy(&meta, l->file.map.data + 32, 8);
    memcpy(&table, l->file.map.data + 56, 8);
    l->meta_end = TC__HEADER_SIZE + (size_t)meta;
    l->table_end = l->meta_end + (size_t)table;
    l->size = l->file.map.size;
    return true;
}

/* Whether a byte belongs to a tensor (and not to the gaps between them). */
static bool in_tensor(const model_layout *l, size_t at) {
    size_t i;
    for (i = 0; i < l->file.tensor_count; i++) {
        size_t offset = (size_t)(l->file.tensors[i].data - l->file.map.data);
        if (at >= offset && at - offset < l->file.tensors[i].size) return true;
    }
    return false;
}

static void check_model_cut(const char *path, const tc__buf *bytes, size_t length) {
    int verified, code;
    if (length == bytes->len) return;
    CHECK(write_file(path, bytes->data, length < bytes->len ? length : bytes->len));
    if (length > bytes->len) CHECK(truncate(path, (off_t)length) == 0);
    code = try_model(path, false, &verified);
    CHECK_MSG(code == TC_ERR_FORMAT, "%zu bytes of %zu: code %d", length, bytes->len, code);
}

TEST(model_cut_short) {
    sandbox box;
    model_layout l;
    tc__buf bytes;
    char path[2 * PROGRAM_PATH];
    size_t i, d;
    int verified;
    REQUIRE(sandbox_open(&box) && make_model(&box) && model_layout_open(&l, box.model));
    bytes = read_file(box.model);
    CHECK(try_model(box.model, true, &verified) == TC_OK && verified == TC_OK);
    snprintf(path, sizeof path, "%s/cut.bin", box.in);
    for (i = 0; i <= 80; i++) check_model_cut(path, &bytes, i);
    for (d = 0; d < 3; d++) { /* one byte before, at and behind each boundary */
        check_model_cut(path, &bytes, l.meta_end + d - 1);
        check_model_cut(path, &bytes, l.table_end + d - 1);
        check_model_cut(path, &bytes, l.size + d - 1);
        for (i = 0; i < l.file.tensor_count; i++) {
            size_t offset = (size_t)(l.file.tensors[i].data - l.file.map.data);
            check_model_cut(path, &bytes, offset + d - 1);
            check_model_cut(path, &bytes, offset + l.file.tensors[i].size + d - 1);
        }
    }
    random_state = 1;
    for (i = 0; i < 100; i++) check_model_cut(path, &bytes, random_below(bytes.len));
    tc__model_file_close(&l.file);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* One bit of the header, the metadata or the table: an error. Of a tensor: the model opens, may
 * compute anything, and verifying finds it. Of the gaps, which hold zeros: no promise. */
static void check_model_flip(const char *path, const model_layout *l, size_t at, int bit) {
    uint8_t byte = l->file.map.data[at], flipped = (uint8_t)(byte ^ 1 << bit);
    int verified, code;
    patch_file(path, at, &flipped, 1);
    code = try_model(path, at >= l->table_end && bit % 2 == 0, &verified);
    if (at < l->table_end)
        CHECK_MSG(code == TC_ERR_FORMAT || code == TC_ERR_UNSUPPORTED, "byte %zu, bit %d: code %d",
                  at, bit, code);
    else if (in_tensor(l, at))
        CHECK_MSG(code == TC_OK && verified == TC_ERR_FORMAT,
                  "byte %zu, bit %d: code %d, verify %d", at, bit, code, verified);
    patch_file(path, at, &byte, 1);
}

TEST(model_bit_flips) {
    sandbox box;
    model_layout l;
    tc__buf bytes;
    char path[2 * PROGRAM_PATH];
    size_t i;
    int verified;
    REQUIRE(sandbox_open(&box) && make_model(&box) && model_layout_open(&l, box.model));
    bytes = read_file(box.model);
    snprintf(path, sizeof path, "%s/flipped.bin", box.in);
    CHECK(write_file(path, bytes.data, bytes.len));
    random_state = 2;
    for (i = 0; i < 8 * TC__HEADER_SIZE; i++) check_model_flip(path, &l, i / 8, (int)(i % 8));
    for (i = 0; i < 400; i++)
        check_model_flip(path, &l, random_below(l.table_end), (int)random_below(8));
    for (i = 0; i < 600; i++)
        check_model_flip(path, &l, l.table_end + random_below(l.size - l.table_end),
                         (int)random_below(8));
    CHECK(try_model(path, true, &verified) == TC_OK && verified == TC_OK); /* all put back */
    tc__model_file_close(&l.file);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* Makes the checksums of header, metadata and table right again. */
static void repair_checksums(tc__buf *bytes, const model_layout *l) {
    uint8_t *data = (uint8_t *)bytes->data;
    uint32_t meta = tc__crc32(0, data + TC__HEADER_SIZE, l->meta_end - TC__HEADER_SIZE);
    uint32_t table = tc__crc32(0, data + l->meta_end, l->table_end - l->meta_end), header;
    memcpy(data + 44, &meta, 4);
    memcpy(data + 52, &table, 4);
    header = tc__crc32(0, data + 16, TC__HEADER_SIZE - 16);
    memcpy(data + 12, &header, 4);
}

/* Contents that a hostile writer could give: bytes of header, metadata and table changed and the
 * checksums made to fit. Anything but a crash is allowed. */
TEST(model_forged) {
    static const uint32_t numbers[] = {0, 1, 2, 255, 65536, 0x7fffffff, 0x80000000, 0xffffffff};
    sandbox box;
    model_layout l;
    tc__buf bytes;
    char path[2 * PROGRAM_PATH];
    size_t i, opened = 0;
    REQUIRE(sandbox_open(&box) && make_model(&box) && model_layout_open(&l, box.model));
    bytes = read_file(box.model);
    snprintf(path, sizeof path, "%s/forged.bin", box.in);
    CHECK(write_file(path, bytes.data, bytes.len));
    random_state = 3;
    for (i = 0; i < 2000; i++) {
        /* Mostly hyper-parameters and the table: the tokenizer's pieces are most of the rest. */
        size_t start = i % 4 == 0 ? 16 : i % 4 == 1 ? l.meta_end : TC__HEADER_SIZE;
        size_t end = i % 4 == 1 ? l.table_end : i % 4 == 2 ? l.meta_end : 1024;
        size_t at = start + random_below(end - start - 4);
        uint32_t number = numbers[random_below(TC_COUNT(numbers))];
        char old[4];
        int verified;
        memcpy(old, bytes.data + at, 4);
        if (random_below(2))
            memcpy(bytes.data + at, &number, 4);
        else
            bytes.data[at] ^= (char)(1 << random_below(8));
        repair_checksums(&bytes, &l);
        patch_file(path, 0, bytes.data, l.table_end);
        opened += try_model(path, true, &verified) == TC_OK;
        memcpy(bytes.data + at, old, 4);
    }
    CHECK_MSG(opened > 50 && opened < 1500, "%zu of 2000 opened", opened);
    tc__model_file_close(&l.file);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* ---- checkpoints ---- */

/* Opens a checkpoint, verifies and reads every tensor. *sum is a checksum of all names, types,
 * shapes and elements. */
static int try_checkpoint(const char *path, bool folder, uint32_t *sum) {
    checkpoint ckpt;
    size_t i;
    tc_error err;
    int code = folder ? ckpt_open_hf(path, &ckpt, &err) : ckpt_open(path, &ckpt, &err);
    *sum = 0;
    for (i = 0; code == TC_OK && i < ckpt.count; i++) {
        const ckpt_tensor *t = &ckpt.tensors[i];
        size_t size = (size_t)ckpt_elements(t) * ckpt_dtype_size(t->dtype);
        int64_t slices = t->ndim ? t->shape[0] : 1;
        void *data;
        if ((code = ckpt_check_crc(&ckpt, t, &err)) != TC_OK) break;
        data = tc__calloc(size, 1);
        if (data && size) ckpt_copy(t, 0, slices, data);
        *sum = tc__crc32(*sum, t->name, strlen(t->name));
        *sum = tc__crc32(*sum, &t->dtype, sizeof t->dtype);
        *sum = tc__crc32(*sum, t->shape, (size_t)t->ndim * sizeof *t->shape);
        if (data) *sum = tc__crc32(*sum, data, size);
        free(data);
    }
    if (code != TC_OK) CHECK(err.code == code && err.message[0] && !strchr(err.message, '\n'));
    ckpt_close(&ckpt);
    return code;
}

static void mark(uint8_t *marks, size_t len, size_t at) {
    size_t i;
    for (i = at < 2 ? 0 : at - 1; i < len && i <= at + 1; i++) marks[i] = 1;
}

/* Marks the boundaries between the sections of a checkpoint and their neighbours: of a zip, the
 * records' beginnings and fixed parts; of the others, where the tensors' data begins and ends. */
static void mark_boundaries(const char *source, const tc__buf *bytes, uint8_t *marks) {
    checkpoint ckpt;
    const uint8_t *end = NULL;
    size_t i;
    tc_error err;
    if (!memcmp(bytes->data, "PK", 2)) {
        for (i = 0; i + 2 < bytes->len; i++) {
            if (memcmp(bytes->data + i, "PK", 2)) continue;
            mark(marks, bytes->len, i);      /* any record */
            mark(marks, bytes->len, i + 30); /* a member's name */
            mark(marks, bytes->len, i + 46); /* the same in the directory */
        }
        return;
    }
    REQUIRE(ckpt_open(source, &ckpt, &err) == TC_OK);
    for (i = 0; i < ckpt.count; i++)
        if (!end || ckpt.tensors[i].data + ckpt.tensors[i].available > end)
            end = ckpt.tensors[i].data + ckpt.tensors[i].available;
    for (i = 0; i < ckpt.count; i++) { /* the last storage ends with the file */
        size_t at = bytes->len - (size_t)(end - ckpt.tensors[i].data);
        mark(marks, bytes->len, at);
        mark(marks, bytes->len, at < 8 ? 0 : at - 8);
        mark(marks, bytes->len, at + (size_t)ckpt.tensors[i].available);
    }
    ckpt_close(&ckpt);
}

/* Cuts the file at `source` short at every boundary and many other lengths, each one an error. */
static void check_checkpoint_cuts(const char *source) {
    sandbox box;
    tc__buf bytes = read_file(source);
    uint8_t *marks = tc__calloc(bytes.len, 1);
    char path[2 * PROGRAM_PATH];
    size_t i;
    uint32_t sum;
    REQUIRE(bytes.len > 500 && marks && sandbox_open(&box));
    CHECK(try_checkpoint(source, false, &sum) == TC_OK);
    mark_boundaries(source, &bytes, marks);
    memset(marks, 1, 120);
    memset(marks + bytes.len - 120, 1, 120);
    random_state = 4;
    for (i = 0; i < 200; i++) marks[random_below(bytes.len)] = 1;
    snprintf(path, sizeof path, "%s/cut", box.in);
    CHECK(write_file(path, bytes.data, bytes.len));
    for (i = bytes.len; i-- > 0;) {
        if (!marks[i]) continue;
        CHECK(truncate(path, (off_t)i) == 0);
        CHECK_MSG(try_checkpoint(path, false, &sum) != TC_OK, "%s: %zu bytes of %zu", source, i,
                  bytes.len);
    }
    free(marks);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

TEST(checkpoints_cut_short) {
    check_checkpoint_cuts(SMALL "g64-a.pt");
    check_checkpoint_cuts(SMALL "g64-b-legacy.pt");
    check_checkpoint_cuts(SMALL "autoawq/model.safetensors");
    check_checkpoint_cuts(SMALL "hf-bin/pytorch_model-00001-of-00002.bin");
    check_checkpoint_cuts(SMALL "g64-b-split/model.norm.weight.pt");
}

/* Flips bits in [start, end) of a checkpoint. `checked`: the file has checksums, so that the result
 * is an error or exactly what was there before. */
static void check_checkpoint_flips(const char *source, size_t start, size_t end, int count,
                                   bool checked) {
    sandbox box;
    tc__buf bytes = read_file(source);
    char path[2 * PROGRAM_PATH];
    uint32_t right, sum;
    int errors = 0, i;
    REQUIRE(bytes.data && sandbox_open(&box));
    if (end > bytes.len) end = bytes.len;
    CHECK(try_checkpoint(source, false, &right) == TC_OK);
    snprintf(path, sizeof path, "%s/flipped", box.in);
    CHECK(write_file(path, bytes.data, bytes.len));
    for (i = 0; i < count; i++) {
        size_t at = start + random_below(end - start);
        char flipped = (char)(bytes.data[at] ^ 1 << random_below(8));
        int code;
        patch_file(path, at, &flipped, 1);
        code = try_checkpoint(path, false, &sum);
        errors += code != TC_OK;
        CHECK_MSG(!checked || code != TC_OK || sum == right, "%s: byte %zu as %02x goes unnoticed",
                  source, at, (unsigned)(uint8_t)flipped);
        patch_file(path, at, bytes.data + at, 1);
    }
    CHECK(try_checkpoint(path, false, &sum) == TC_OK && sum == right);
    CHECK_MSG(errors > 0, "%s: no flip in %zu..%zu was found", source, start, end);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

TEST(checkpoint_bit_flips) {
    const size_t all = (size_t)-1;
    sandbox box;
    tc__buf zip = read_file(SMALL "g64-a.pt");
    char path[2 * PROGRAM_PATH];
    uint32_t directory, size;
    REQUIRE(zip.len > 22 && sandbox_open(&box));
    memcpy(&directory, zip.data + zip.len - 6, 4); /* of the end record at the end */
    REQUIRE(directory < zip.len && !memcmp(zip.data + directory, "PK\1\2", 4));
    REQUIRE(!memcmp(zip.data + directory + 46, "g64-a/data.pkl", 14)); /* the first member */
    memcpy(&size, zip.data + directory + 24, 4);
    random_state = 5;
    check_checkpoint_flips(SMALL "g64-a.pt", 0, all, 600, true);
    check_checkpoint_flips(SMALL "g64-a.pt", 0, size, 400, true);
    check_checkpoint_flips(SMALL "g64-a.pt", directory, all, 600, true);
    /* The same pickle without its checksum, so that its interpreter sees what was flipped. */
    memset(zip.data + directory + 16, 0, 4);
    snprintf(path, sizeof path, "%s/unchecked.pt", box.root);
    CHECK(write_file(path, zip.data, zip.len));
    check_checkpoint_flips(path, 64, 64 + size, 1000, false);
    check_checkpoint_flips(SMALL "g64-b-legacy.pt", 0, 12000, 600, false);
    check_checkpoint_flips(SMALL "autoawq/model.safetensors", 0, 6000, 600, false);
    tc__buf_free(&zip);
    sandbox_close(&box);
}

/* ---- the text files of a Hugging Face folder ---- */

TEST(config_cut_short) {
    sandbox box;
    tc__buf bytes = read_file(SMALL "hf/config.json"), notes = {0};
    char path[2 * PROGRAM_PATH];
    hf_config config;
    size_t i, end;
    tc_error err;
    REQUIRE(bytes.data && sandbox_open(&box));
    snprintf(path, sizeof path, "%s/config.json", box.in);
    end = (size_t)(strrchr(bytes.data, '}') - bytes.data);
    for (i = 0; i <= end; i++) {
        CHECK(write_file(path, bytes.data, i));
        CHECK_MSG(hf_config_read(box.in, &config, &notes, &err) != TC_OK && err.message[0],
                  "config.json: %zu bytes of %zu", i, bytes.len);
    }
    CHECK(write_file(path, bytes.data, bytes.len));
    CHECK_MSG(hf_config_read(box.in, &config, &notes, &err) == TC_OK, "%s", err.message);
    hf_config_free(&config);
    random_state = 6;
    for (i = 0; i < 1000; i++) { /* flips: no promise but not to crash */
        size_t at = random_below(bytes.len);
        bytes.data[at] ^= (char)(1 << random_below(8));
        CHECK(write_file(path, bytes.data, bytes.len));
        if (hf_config_read(box.in, &config, &notes, &err) == TC_OK) hf_config_free(&config);
        if (i % 4 == 3) {
            tc__buf_free(&bytes);
            bytes = read_file(SMALL "hf/config.json");
        }
    }
    tc__buf_free(&notes);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* A checksum of everything that was imported; the code of the import in *code. */
static uint32_t try_tokenizer(const char *folder, int *code) {
    tokenizer_import import;
    tc__buf notes = {0};
    uint32_t sum = 0;
    tc_error err;
    *code = tokenizer_folder_read(folder, 320, &import, &notes, &err);
    if (*code == TC_OK) {
        sum = tc__crc32(sum, import.pieces.data, import.pieces.len);
        sum = tc__crc32(sum, import.scores.data, import.scores.len);
        sum = tc__crc32(sum, import.types.data, import.types.len);
        sum = tc__crc32(sum, import.unk_surface.data, import.unk_surface.len);
        sum = tc__crc32(sum, &import.unk_id, sizeof import.unk_id);
        sum = tc__crc32(sum, &import.bos_id, sizeof import.bos_id);
        sum = tc__crc32(sum, &import.eos_id, sizeof import.eos_id);
        sum = tc__crc32(sum, &import.dummy_prefix, sizeof import.dummy_prefix);
        tokenizer_import_free(&import);
    } else {
        CHECK(err.code == *code && err.message[0] && !strchr(err.message, '\n'));
    }
    tc__buf_free(&notes);
    return sum;
}

TEST(tokenizer_cut_short) {
    sandbox box;
    tc__buf bytes = read_file(SMALL "hf/tokenizer.model");
    char path[2 * PROGRAM_PATH];
    uint32_t right;
    size_t i, accepted = 0;
    int code;
    REQUIRE(bytes.data && sandbox_open(&box));
    right = try_tokenizer(SMALL "hf", &code);
    CHECK(code == TC_OK);
    snprintf(path, sizeof path, "%s/tokenizer.model", box.in);
    for (i = 0; i < bytes.len; i++) {
        uint32_t sum;
        CHECK(write_file(path, bytes.data, i));
        sum = try_tokenizer(box.in, &code);
        accepted += code == TC_OK;
        CHECK_MSG(code != TC_OK || sum == right, "tokenizer.model: %zu bytes of %zu", i, bytes.len);
    }
    CHECK_MSG(accepted < 4, "%zu lengths accepted",
              accepted); /* cut behind what is read, at most */
    random_state = 7;
    for (i = 0; i < 1000; i++) { /* flips: no promise but not to crash */
        size_t at = random_below(i % 2 ? bytes.len : 300);
        char old = bytes.data[at];
        bytes.data[at] ^= (char)(1 << random_below(8));
        CHECK(write_file(path, bytes.data, bytes.len));
        try_tokenizer(box.in, &code);
        bytes.data[at] = old;
    }
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

TEST(index_cut_short) {
    sandbox box;
    char path[2 * PROGRAM_PATH];
    tc__buf bytes = read_file(SMALL "hf-bin/pytorch_model.bin.index.json");
    uint32_t right, sum;
    size_t i, end;
    REQUIRE(bytes.data && sandbox_open(&box));
    sandbox_copy(&box, SMALL "hf-bin");
    snprintf(path, sizeof path, "%s/pytorch_model.bin.index.json", box.in);
    CHECK(try_checkpoint(box.in, true, &right) == TC_OK && right);
    end = (size_t)(strrchr(bytes.data, '}') - bytes.data);
    for (i = 0; i <= end; i += i < 200 || i + 60 > end ? 1 : 7) {
        CHECK(write_file(path, bytes.data, i));
        CHECK_MSG(try_checkpoint(box.in, true, &sum) != TC_OK, "index: %zu bytes of %zu", i,
                  bytes.len);
    }
    random_state = 8;
    for (i = 0; i < 300; i++) {
        size_t at = random_below(bytes.len);
        char old = bytes.data[at];
        bytes.data[at] ^= (char)(1 << random_below(8));
        CHECK(write_file(path, bytes.data, bytes.len));
        try_checkpoint(box.in, true, &sum);
        bytes.data[at] = old;
    }
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* ---- the programs ---- */

/* Runs convert on damaged input, with and without an older output file: the exit status is 3 (or 1
 * for what the system refuses), one line says why, and the output folder is as it was. */
static void check_refused(sandbox *box, const char *hf, const char *awq, const char *what) {
    static const char precious[] = "an older model";
    const char *argv[10] = {program_convert(), "--hf", hf, "-o", box->model};
    char messages[4096];
    int older, status, n = 5;
    if (awq) argv[n++] = "--awq", argv[n++] = awq;
    for (older = 0; older < 2; older++) {
        tc__buf left;
        if (older) CHECK(write_file(box->model, precious, sizeof precious));
        status = program_run(argv, NULL, 0, messages, sizeof messages);
        CHECK_MSG(status == 3 || status == 1, "%s: exit status %d: %s", what, status, messages);
        CHECK_MSG(one_line(messages), "%s: not one line: %s", what, messages);
        CHECK_MSG(count_files(box->out) == older, "%s: %d files left behind", what,
                  count_files(box->out) - older);
        left = read_file(box->model);
        CHECK(!older || (left.len == sizeof precious && !memcmp(left.data, precious, left.len)));
        tc__buf_free(&left);
    }
    unlink(box->model);
}

/* Refuses a copy of `folder` in which `file` was changed: cut to `cut` per cent of its size, or,
 * where flip is set, with one bit flipped there. cut < 0: the file is missing. */
static void check_folder_refused(const char *folder, const char *file, int cut, bool flip,
                                 bool as_awq) {
    sandbox box;
    tc__buf bytes;
    char path[2 * PROGRAM_PATH], what[PROGRAM_PATH];
    size_t at;
    REQUIRE(sandbox_open(&box));
    sandbox_copy(&box, folder);
    snprintf(path, sizeof path, "%s/%s", box.in, file);
    snprintf(what, sizeof what, "%s/%s %s %d %%", folder, file, flip ? "flipped at" : "cut to",
             cut);
    bytes = read_file(path);
    at = cut < 0 ? 0 : bytes.len * (size_t)cut / 100;
    REQUIRE(bytes.data && at < bytes.len);
    if (cut < 0)
        CHECK(unlink(path) == 0);
    else if (!flip)
        CHECK(truncate(path, (off_t)at) == 0);
    else
        bytes.data[at] ^= 16, patch_file(path, at, bytes.data + at, 1);
    check_refused(&box, as_awq ? SMALL "hf" : box.in, as_awq ? box.in : NULL, what);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

/* The same for a single file given to --awq. */
static void check_file_refused(const char *file, int cut, bool flip) {
    sandbox box;
    tc__buf bytes = read_file(file);
    char path[2 * PROGRAM_PATH], what[PROGRAM_PATH];
    size_t at = bytes.len * (size_t)cut / 100;
    REQUIRE(bytes.data && sandbox_open(&box));
    snprintf(path, sizeof path, "%s/model.pt", box.in);
    snprintf(what, sizeof what, "%s %s %d %%", file, flip ? "flipped at" : "cut to", cut);
    if (flip) bytes.data[at] ^= 16;
    CHECK(write_file(path, bytes.data, flip ? bytes.len : at));
    check_refused(&box, SMALL "hf", path, what);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

TEST(convert_refuses) {
    static const int cuts[] = {0, 1, 30, 50, 99};
    size_t i;
    for (i = 0; i < TC_COUNT(cuts); i++) {
        check_file_refused(SMALL "g64-a.pt", cuts[i], false);
        check_file_refused(SMALL "g64-b-legacy.pt", cuts[i], false);
        check_folder_refused(SMALL "hf", "model.safetensors", cuts[i], false, false);
        check_folder_refused(SMALL "hf", "config.json", cuts[i], false, false);
        check_folder_refused(SMALL "hf", "tokenizer.model", cuts[i], false, false);
        check_folder_refused(SMALL "hf", "tokenizer_config.json", cuts[i], false, false);
        check_folder_refused(SMALL "hf-bin", "pytorch_model-00002-of-00002.bin", cuts[i], false,
                             false);
        check_folder_refused(SMALL "hf-bin", "pytorch_model.bin.index.json", cuts[i], false, false);
        check_folder_refused(SMALL "g64-b-split", "lm_head.weight.pt", cuts[i], false, true);
    }
    check_file_refused(SMALL "g64-c.pt", 50, true); /* data: the zip's checksum */
    check_folder_refused(SMALL "g64-b-split", "lm_head.weight.pt", 50, true, true);
    check_folder_refused(SMALL "hf", "config.json", -1, false, false);
    check_folder_refused(SMALL "hf", "model.safetensors", -1, false, false);
    check_folder_refused(SMALL "hf", "tokenizer.model", -1, false, false);
    check_folder_refused(SMALL "hf-bin", "pytorch_model-00001-of-00002.bin", -1, false, false);
    check_folder_refused(SMALL "g64-b-split", "model.norm.weight.pt", -1, false, true);
}

/* convert --verify, convert --inspect and chat on a damaged model.bin. */
TEST(programs_refuse_models) {
    sandbox box;
    tc__buf bytes;
    model_layout l;
    char messages[4096], path[2 * PROGRAM_PATH];
    const char *verify[] = {program_convert(), "--verify", path, NULL};
    const char *inspect[] = {program_convert(), "--inspect", path, NULL};
    const char *chat[] = {program_chat(), path, "-p", "hello", "-n", "1", NULL};
    const char *const *programs[] = {verify, inspect, chat};
    size_t i, at;
    int status;
    REQUIRE(sandbox_open(&box) && make_model(&box) && model_layout_open(&l, box.model));
    bytes = read_file(box.model);
    snprintf(path, sizeof path, "%s/model.bin", box.in);
    for (i = 0; i < 3; i++) {
        CHECK(write_file(path, bytes.data, bytes.len));
        status = program_run(programs[i], NULL, 0, messages, sizeof messages);
        CHECK_MSG(status == 0, "%s: exit status %d: %s", programs[i][1], status, messages);
        CHECK(truncate(path, (off_t)bytes.len / 2) == 0);
        status = program_run(programs[i], NULL, 0, messages, sizeof messages);
        CHECK_MSG(status == 3 || (i == 2 && status == 1), "%s cut: exit status %d: %s",
                  programs[i][1], status, messages);
        CHECK_MSG(one_line(messages), "%s: not one line: %s", programs[i][1], messages);
        bytes.data[100] ^= 1;
        CHECK(write_file(path, bytes.data, bytes.len));
        status = program_run(programs[i], NULL, 0, messages, sizeof messages);
        CHECK_MSG(status == 3 || (i == 2 && status == 1), "%s flipped: exit status %d: %s",
                  programs[i][1], status, messages);
        CHECK_MSG(one_line(messages), "%s: not one line: %s", programs[i][1], messages);
        bytes.data[100] ^= 1;
    }
    at = (size_t)(l.file.tensors[1].data - l.file.map.data);
    bytes.data[at] ^= 1;
    CHECK(write_file(path, bytes.data, bytes.len));
    status = program_run(verify, NULL, 0, messages, sizeof messages);
    CHECK_MSG(status == 3 && one_line(messages), "--verify: exit status %d: %s", status, messages);
    memcpy(messages + 2000, l.file.tensors[1].name, l.file.tensors[1].name_len);
    messages[2000 + l.file.tensors[1].name_len] = 0;
    CHECK_MSG(strstr(messages, messages + 2000) != NULL, "%s does not name %s", messages,
              messages + 2000);
    tc__model_file_close(&l.file);
    tc__buf_free(&bytes);
    sandbox_close(&box);
}

TEST_MAIN(RUN(model_cut_short) RUN(model_bit_flips) RUN(model_forged) RUN(checkpoints_cut_short)
              RUN(checkpoint_bit_flips) RUN(config_cut_short) RUN(tokenizer_cut_short)
                  RUN(index_cut_short) RUN(convert_refuses) RUN(programs_refuse_models))
