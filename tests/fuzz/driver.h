/* driver - makes a fuzz target (LLVMFuzzerTestOneInput) a program of its own:
 *     ./fuzz_pickle [-n MUTATIONS] [-s SEED] [-k] FILE...
 * runs every FILE as it is, then MUTATIONS (default 0) random changes of them; the same seed gives
 * the same changes. With -k each changed input is written to ./fuzz-input first, so that it is there
 * when the target crashes. "make fuzz" builds and runs them all (tests/fuzz/run.sh). With libFuzzer,
 * guided by coverage, a target is built by
 *     clang -g -O1 -fsanitize=address,undefined,fuzzer -DFUZZ_LIBFUZZER -I. -Isrc -Iconvert \
 *         tests/fuzz/fuzz_pickle.c src/[a-z]*.c convert/[a-ln-z]*.c -lm -ldl -lpthread -o fuzz
 *     ./fuzz FOLDER_OF_INPUTS
 */
#ifndef FUZZ_DRIVER_H
#define FUZZ_DRIVER_H

#include "src/base.h"

#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A path of this process's own for a file, in $TMPDIR or /tmp. */
static inline const char *fuzz_path(char path[240], const char *name) {
    const char *parent = getenv("TMPDIR");
    snprintf(path, 240, "%.150s/fuzz-%ld-%.60s", parent ? parent : "/tmp", (long)getpid(), name);
    return path;
}

static inline void fuzz_write(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) {
        perror(path);
        exit(2);
    }
}

/* Writes a checkpoint. Checksums in a zip directory become zero ("not computed"): otherwise almost
 * no change would get past that of data.pkl. */
static inline void fuzz_write_checkpoint(const char *path, const void *data, size_t size) {
    tc__buf copy = {0};
    tc__buf_add(&copy, data, size);
    if (copy.failed) exit(2);
    for (size_t i = 0; i + 20 <= copy.len; i++)
        if (!memcmp(copy.data + i, "PK\1\2", 4)) memset(copy.data + i + 16, 0, 4);
    fuzz_write(path, copy.data, copy.len);
    tc__buf_free(&copy);
}

#ifndef FUZZ_LIBFUZZER

static uint64_t fuzz_state;

static uint32_t fuzz_random(uint32_t below) { /* splitmix64 */
    uint64_t z = fuzz_state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) >> 32) % below;
}

/* Runs the target on memory of exactly the input's size. */
static void fuzz_run(const char *bytes, size_t len) {
    uint8_t *copy = malloc(len ? len : 1);
    if (!copy) abort();
    if (len) memcpy(copy, bytes, len);
    LLVMFuzzerTestOneInput(copy, len);
    free(copy);
}

static tc__buf fuzz_read(const char *path) {
    tc__buf bytes = {0};
    char piece[4096];
    size_t n;
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    while ((n = fread(piece, 1, sizeof piece, file)) > 0) tc__buf_add(&bytes, piece, n);
    fclose(file);
    return bytes;
}

/* One random change: a byte, a number of some size, a piece cut out, doubled or taken from another
 * input, the end cut off. */
static void fuzz_change(tc__buf *input, const tc__buf *other) {
    static const uint64_t numbers[] = {0,          1,          2,          0x7F,
                                       0x80,       0xFF,       0x7FFF,     0xFFFF,
                                       0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1ull << 32,
                                       1ull << 62, INT64_MAX,  1ull << 63, UINT64_MAX};
    if (!input->len) return;
    size_t at = fuzz_random((uint32_t)input->len), left = input->len - at;
    size_t size = 1 + fuzz_random(left < 64 ? (uint32_t)left : 64);
    switch (fuzz_random(7)) {
    case 0: input->data[at] = (char)fuzz_random(256); break;
    case 1: input->data[at] ^= (char)(1u << fuzz_random(8)); break;
    case 2: {
        size = (size_t)1 << fuzz_random(4);
        if (size <= left) memcpy(input->data + at, &numbers[fuzz_random(16)], size);
        break;
    }
    case 3:
        memmove(input->data + at, input->data + at + size, left - size);
        input->len -= size;
        break;
    case 4: {
        tc__buf changed = {0};
        tc__buf_add(&changed, input->data, at + size);
        tc__buf_add(&changed, input->data + at, left);
        tc__buf_free(input);
        *input = changed;
        break;
    }
    case 5:
        if (other->len >= size)
            memcpy(input->data + at, other->data + fuzz_random((uint32_t)(other->len - size + 1)),
                   size);
        break;
    default:
        if (fuzz_random(8) == 0) input->len = at;
    }
}

static void fuzz_mutate(const tc__buf *files, uint32_t count, bool keep) {
    tc__buf input = {0};
    const tc__buf *file = &files[fuzz_random(count)];
    tc__buf_add(&input, file->data, file->len);
    for (uint32_t changes = 1 + fuzz_random(4); changes > 0; changes--)
        fuzz_change(&input, &files[fuzz_random(count)]);
    if (keep) {
        FILE *out = fopen("fuzz-input", "wb");
        if (out) fwrite(input.data, 1, input.len, out);
        if (out) fclose(out);
    }
    fuzz_run(input.data, input.len);
    tc__buf_free(&input);
}

int main(int argc, char **argv) {
    long mutations = 0;
    bool keep = false;
    int arg = 1;
    for (; arg < argc && argv[arg][0] == '-'; arg++) {
        if (!strcmp(argv[arg], "-k"))
            keep = true;
        else if (!strcmp(argv[arg], "-n") && arg + 1 < argc)
            mutations = strtol(argv[++arg], NULL, 10);
        else if (!strcmp(argv[arg], "-s") && arg + 1 < argc)
            fuzz_state = strtoull(argv[++arg], NULL, 10);
        else
            arg = argc;
    }
    if (arg >= argc) {
        fprintf(stderr, "usage: %s [-n MUTATIONS] [-s SEED] [-k] FILE...\n", argv[0]);
        return 2;
    }
    uint32_t count = (uint32_t)(argc - arg);
    tc__buf *files = tc__calloc(count, sizeof *files);
    if (!files) return 2;
    for (uint32_t i = 0; i < count; i++) {
        files[i] = fuzz_read(argv[arg + (int)i]);
        fuzz_run(files[i].data, files[i].len);
    }
    for (long i = 0; i < mutations; i++) fuzz_mutate(files, count, keep);
    for (uint32_t i = 0; i < count; i++) tc__buf_free(&files[i]);
    free(files);
    printf("%u files, %ld mutations: no crash\n", count, mutations);
    return 0;
}

#endif /* FUZZ_LIBFUZZER */
#endif /* FUZZ_DRIVER_H */
