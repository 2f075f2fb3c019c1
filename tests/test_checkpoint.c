/* The checkpoint readers of convert, through the view that it builds on (convert/checkpoint.h):
 * files written by PyTorch and safetensors (tests/make_checkpoint_data.py), files made by the
 * original llm-awq code where $TINYCHAT_FIXTURES names them, and forged ones, mostly bad.
 */
#include "program.h"

#include "forge.h"

#include "convert/checkpoint.h"
#include "convert/safetensors.h"
#include "convert/zip.h"
#include "test.h"

#include <sys/resource.h>

#define DATA "tests/data/checkpoint/"

/* ---- helpers ---- */

static char folder[PROGRAM_PATH]; /* of temporary files: made when a test needs it */
static char path_buffer[2 * PROGRAM_PATH];

static const char *in_folder(const char *name) {
    if (!folder[0] && !program_folder(folder)) abort();
    snprintf(path_buffer, sizeof path_buffer, "%s/%s", folder, name);
    return path_buffer;
}

static const char *write_file(const char *name, const void *bytes, size_t len) {
    const char *path = in_folder(name);
    unlink(path); /* ext4 waits for the disk when a file is overwritten, not for a new one */
    FILE *file = fopen(path, "wb");
    bool good = file && (!len || fwrite(bytes, 1, len, file) == len);
    if (file) fclose(file);
    if (!good) abort();
    return path;
}

static const char *write_text(const char *name, const char *text) {
    return write_file(name, text, strlen(text));
}

static void clear_folder(void) {
    program_remove_folder(folder);
    folder[0] = 0;
}

static tc__buf read_file(const char *path) {
    tc__buf bytes = {0};
    char piece[4096];
    size_t n;
    FILE *file = fopen(path, "rb");
    while (file && (n = fread(piece, 1, sizeof piece, file)) > 0) tc__buf_add(&bytes, piece, n);
    if (file) fclose(file);
    return bytes;
}

/* Where the bytes first occur. */
static size_t find_bytes(const tc__buf *bytes, const char *what, size_t len) {
    for (size_t i = 0; i + len <= bytes->len; i++)
        if (!memcmp(bytes->data + i, what, len)) return i;
    abort();
}

/* The CRC-32 of the tensor's elements in C order, copied in slices of at most `step`. */
static uint32_t tensor_crc(const ckpt_tensor *tensor, int64_t step) {
    int64_t rows = tensor->ndim ? tensor->shape[0] : 1;
    size_t row = rows ? (size_t)ckpt_elements(tensor) / (size_t)rows : 0;
    size_t size = ckpt_dtype_size(tensor->dtype);
    if (step > rows) step = rows ? rows : 1;
    uint8_t *copy = malloc((size_t)step * row * size + 1);
    uint32_t crc = 0;
    for (int64_t at = 0; at < rows; at += step) {
        int64_t count = rows - at < step ? rows - at : step;
        ckpt_copy(tensor, at, count, copy);
        crc = tc__crc32(crc, copy, (size_t)count * row * size);
    }
    free(copy);
    return crc;
}

/* Compares an open checkpoint with a .golden file. */
static void check_golden(checkpoint *ckpt, const char *golden) {
    FILE *file = fopen(golden, "r");
    char line[1024], shape[CKPT_SHAPE_TEXT];
    size_t lines = 0;
    tc_error err;
    CHECK_MSG(file, "%s is missing", golden);
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *bracket = strchr(line, ']');
        char *name = bracket + 2 + 8 + 1;
        unsigned long crc = strtoul(bracket + 2, NULL, 16);
        bracket[1] = 0;
        const ckpt_tensor *tensor = ckpt_find(ckpt, name);
        CHECK_MSG(tensor, "%s: '%s' not found", golden, name);
        if (!tensor) continue;
        CHECK_MSG(!strcmp(ckpt_shape_text(tensor, shape), line), "%s: %s, not %s", name, shape,
                  line);
        CHECK_MSG(!ckpt_check_crc(ckpt, tensor, &err), "%s", err.message);
        CHECK_MSG(tensor_crc(tensor, 1 << 20) == crc, "%s", name);
        CHECK_MSG(tensor_crc(tensor, 1) == crc, "%s, one slice at a time", name);
        CHECK_MSG(tensor_crc(tensor, 3) == crc, "%s, three slices at a time", name);
        lines++;
    }
    if (file) fclose(file);
    CHECK_MSG(lines == ckpt->count, "%s: %zu of %zu", golden, lines, ckpt->count);
}

/* Opens what must not open, and compares code and message. */
static void expect_error(const char *path, int code, const char *message) {
    checkpoint ckpt;
    tc_error err;
    int result = ckpt_open(path, &ckpt, &err);
    CHECK_MSG(result == code && err.code == code, "%s: code %d: %s", message, result, err.message);
    CHECK_MSG(strstr(err.message, message), "expected '%s': %s", message, err.message);
    CHECK_MSG(!strncmp(err.message, path, strlen(path)), "no path: %s", err.message);
    if (result)
        CHECK(!ckpt.count && !ckpt.state);
    else
        ckpt_close(&ckpt);
}

static const char *write_torch(const char *pickle, const char *const *storages,
                               forge_options options) {
    forge_zip zip = forge_torch(pickle, storages, options);
    const char *path = write_file("forged.pt", zip.bytes.data, zip.bytes.len);
    tc__buf_free(&zip.bytes);
    return path;
}

static const char pickle_of_two[] = "! } ( 'a' tensor:0:Half:6:0:2x3:3x1 'b' tensor:1:Byte:4:1:2:2 "
                                    "u .";
static const char *const two_storages[] = {"abcdefghijkl", "wxyz", NULL};
static const forge_options plain = {0};

/* ---- good files ---- */

TEST(opens_what_pytorch_and_safetensors_write) {
    static const struct {
        const char *path, *golden, *format;
    } files[] = {{DATA "types.pt", DATA "types.golden", "torch zip"},
                 {DATA "types-legacy.pt", DATA "types.golden", "torch legacy"},
                 {DATA "types.safetensors", DATA "types.golden", "safetensors"},
                 {DATA "many.pt", DATA "many.golden", "torch zip"}};
    for (size_t i = 0; i < TC_COUNT(files); i++) {
        checkpoint ckpt;
        tc_error err;
        int code = ckpt_open(files[i].path, &ckpt, &err);
        CHECK_MSG(!code, "%s", err.message);
        if (code) continue;
        CHECK(ckpt.kind == CKPT_WEIGHTS && !ckpt.search_count && ckpt.file_count == 1);
        CHECK_MSG(!strcmp(ckpt.format, files[i].format), "%s", ckpt.format);
        check_golden(&ckpt, files[i].golden);
        ckpt_close(&ckpt);
    }
}

TEST(strides_are_those_of_the_file) {
    checkpoint ckpt;
    REQUIRE(!ckpt_open(DATA "types.pt", &ckpt, NULL));
    const ckpt_tensor *t = ckpt_find(&ckpt, "view.transposed");
    REQUIRE(t);
    CHECK(t->stride[0] == 1 && t->stride[1] == 8 && !ckpt_contiguous(t));
    CHECK(t->available == 120);
    t = ckpt_find(&ckpt, "view.slice");
    CHECK(t && t->stride[0] == 1 && ckpt_contiguous(t) && t->available == 120 - 34);
    t = ckpt_find(&ckpt, "type.F32");
    CHECK(t && ckpt_contiguous(t) && ckpt_elements(t) == 24);
    t = ckpt_find(&ckpt, "one");
    CHECK(t && ckpt_contiguous(t) && ckpt_elements(t) == 1 && t->ndim == 8);
    t = ckpt_find(&ckpt, "empty");
    CHECK(t && ckpt_contiguous(t) && ckpt_elements(t) == 0);
    const ckpt_tensor *a = ckpt_find(&ckpt, "tied.a"), *b = ckpt_find(&ckpt, "tied.b");
    CHECK(a && b && a->data == b->data && a->storage == b->storage);
    CHECK(!ckpt_find(&ckpt, "tied") && !ckpt_find(&ckpt, "tied.c") && !ckpt_find(&ckpt, ""));
    ckpt_close(&ckpt);
    ckpt_close(&ckpt); /* harmless */
}

TEST(tensors_are_listed_in_the_order_of_their_numbers) {
    checkpoint ckpt;
    REQUIRE(!ckpt_open(DATA "many.pt", &ckpt, NULL));
    for (size_t i = 0; i < ckpt.count; i++) {
        char name[64];
        snprintf(name, sizeof name, "layers.%zu.weight", i);
        CHECK_MSG(!strcmp(ckpt.tensors[i].name, name), "%zu: %s", i, ckpt.tensors[i].name);
    }
    ckpt_close(&ckpt);
    /* Names that differ only in how a number is written are different names. */
    const char *path = write_torch("! } ( 'x01' tensor:0:Half:6:0:1:1 'x1' tensor:0:Half:6:1:1:1 "
                                   "'x001y' tensor:0:Half:6:2:1:1 'x1y' tensor:0:Half:6:3:1:1 "
                                   "'x' tensor:0:Half:6:4:1:1 u .",
                                   two_storages, plain);
    REQUIRE(!ckpt_open(path, &ckpt, NULL));
    CHECK(ckpt.count == 5);
    for (size_t i = 0; i < ckpt.count; i++)
        CHECK(ckpt_find(&ckpt, ckpt.tensors[i].name) == &ckpt.tensors[i]);
    CHECK(ckpt_find(&ckpt, "x01")->data + 2 == ckpt_find(&ckpt, "x1")->data);
    CHECK(!ckpt_find(&ckpt, "x001") && !ckpt_find(&ckpt, "x01y"));
    ckpt_close(&ckpt);
    clear_folder();
}

TEST(search_results_are_refused_as_weights_and_can_be_listed) {
    checkpoint ckpt;
    tc_error err;
    expect_error(DATA "search.pt", TC_ERR_UNSUPPORTED,
                 "this file holds AWQ search results (scales and clips), not quantised weights");
    CHECK(ckpt_open(DATA "search.pt", &ckpt, &err) && ckpt.kind == CKPT_SEARCH && !ckpt.count);
    REQUIRE(!ckpt_open_any(DATA "search.pt", &ckpt, &err));
    CHECK(ckpt.kind == CKPT_SEARCH && ckpt.search_count == 36 && ckpt.count == 36);
    check_golden(&ckpt, DATA "search.golden");
    for (size_t i = 0; i < ckpt.search_count; i++) {
        const ckpt_search *entry = &ckpt.search[i];
        char expected[200];
        size_t layer = i < 24 ? i / 2 : i - 24;
        CHECK(entry->is_clip == (i >= 24));
        CHECK(entry->layer_count == (i >= 24 ? 0 : i % 2 ? 1 : 3));
        snprintf(expected, sizeof expected, "model.layers.%zu.%s", layer,
                 i >= 24 ? "self_attn.v_proj"
                 : i % 2 ? "mlp.up_proj"
                         : "input_layernorm");
        CHECK_MSG(!strcmp(entry->op, expected), "%zu: %s", i, entry->op);
        if (entry->layer_count == 3) {
            snprintf(expected, sizeof expected, "model.layers.%zu.self_attn.k_proj", layer);
            CHECK(!strcmp(entry->layers[1], expected));
        }
        CHECK((size_t)entry->tensor->shape[0] == (i >= 24 ? 3 : i % 2 ? 20 - layer : 8 + layer));
        snprintf(expected, sizeof expected, i >= 24 ? "clip[%zu] " : "scale[%zu] ",
                 i >= 24 ? layer : i);
        CHECK(!strncmp(entry->tensor->name, expected, strlen(expected)));
    }
    ckpt_close(&ckpt);
}

TEST(damaged_search_results_are_refused) {
    static const char *const lists[] = {
        "'scale' ] ( 1 e 'clip' ]",
        "'scale' ] ( 'a' ( 'b' t t2 e 'clip' ]",
        "'scale' ] ( 'a' 'b' tensor:0:Half:6:0:6:1 t3 e 'clip' ]",
        "'scale' ] ( 'a' ) tensor:0:Half:6:0:6:1 t3 e 'clip' ]",
        "'scale' ] ( 'a' ( 1 t tensor:0:Half:6:0:6:1 t3 e 'clip' ]",
        "'scale' ] 'clip' ] ( 'a' 5 t2 e",
        "'scale' ] 'clip' ] ( tensor:0:Half:6:0:6:1 tensor:0:Half:6:0:6:1 t2 e"};
    for (size_t i = 0; i < TC_COUNT(lists); i++) {
        char words[400];
        checkpoint ckpt;
        tc_error err;
        snprintf(words, sizeof words, "! } ( %s u .", lists[i]);
        CHECK(ckpt_open_any(write_torch(words, two_storages, plain), &ckpt, &err) == TC_ERR_FORMAT);
        CHECK_MSG(strstr(err.message, "not what an AWQ search writes"), "%s", err.message);
    }
    /* A tensor called scale is just a tensor. */
    checkpoint ckpt;
    REQUIRE(!ckpt_open(write_torch("! } ( 'scale' tensor:0:Half:6:0:6:1 'clip' "
                                   "tensor:0:Half:6:0:6:1 u .",
                                   two_storages, plain),
                       &ckpt, NULL));
    CHECK(ckpt.kind == CKPT_WEIGHTS && ckpt.count == 2);
    ckpt_close(&ckpt);
    clear_folder();
}

/* ---- zip ---- */

TEST(every_way_to_write_a_zip_file_reads_the_same) {
    static const forge_options options[] = {{0},
                                            {.no_zip64 = true},
                                            {.extra64 = true},
                                            {.local_sizes = true},
                                            {.zero_crc = true},
                                            {.comment = "a comment, PK\5\6"},
                                            {.no_zip64 = true, .local_sizes = true}};
    for (size_t i = 0; i < TC_COUNT(options); i++) {
        checkpoint ckpt;
        tc_error err;
        int code = ckpt_open(write_torch(pickle_of_two, two_storages, options[i]), &ckpt, &err);
        CHECK_MSG(!code, "case %zu: %s", i, err.message);
        if (code) continue;
        const ckpt_tensor *a = ckpt_find(&ckpt, "a"), *b = ckpt_find(&ckpt, "b");
        CHECK(a && b && !ckpt_check_crc(&ckpt, a, &err) && !ckpt_check_crc(&ckpt, b, &err));
        char copy[16] = "";
        ckpt_copy(a, 0, 2, copy);
        CHECK(!memcmp(copy, "abcdefghijkl", 12));
        ckpt_copy(b, 0, 2, copy);
        CHECK(!memcmp(copy, "xz", 2));
        ckpt_copy(b, 1, 1, copy);
        CHECK(copy[0] == 'z');
        ckpt_close(&ckpt);
    }
    clear_folder();
}

TEST(checksums_are_compared_when_data_is_used) {
    checkpoint ckpt;
    tc_error err;
    forge_zip zip = forge_torch("! } ( 'a' tensor:0:Half:6:0:2x3:3x1 'tied' tensor:0:Half:6:0:6:1 "
                                "'b' tensor:1:Byte:4:0:4:1 u .",
                                two_storages, plain);
    zip.bytes.data[find_bytes(&zip.bytes, "abcdefghijkl", 12) + 5] ^= 1;
    const char *path = write_file("damaged.pt", zip.bytes.data, zip.bytes.len);
    tc__buf_free(&zip.bytes);
    REQUIRE(!ckpt_open(path, &ckpt, &err));
    CHECK(ckpt_find(&ckpt, "a")->storage == ckpt_find(&ckpt, "tied")->storage);
    CHECK(!ckpt_check_crc(&ckpt, ckpt_find(&ckpt, "b"), &err));
    /* Once is enough: what happens to the file afterwards is not noticed. */
    const ckpt_tensor *b = ckpt_find(&ckpt, "b");
    tc__buf whole = read_file(path);
    int file = open(path, O_WRONLY);
    CHECK(pwrite(file, "WXYZ", 4, (off_t)find_bytes(&whole, "wxyz", 4)) == 4 && close(file) == 0);
    tc__buf_free(&whole);
    CHECK(!memcmp(b->data, "WXYZ", 4) && !ckpt_check_crc(&ckpt, b, &err));
    for (int time = 0; time < 2; time++) { /* and again: a bad storage does not become good */
        CHECK(ckpt_check_crc(&ckpt, ckpt_find(&ckpt, "a"), &err) == TC_ERR_FORMAT);
        CHECK_MSG(strstr(err.message, "damaged.pt: member 'data/0' (tensor 'a')"), "%s",
                  err.message);
        CHECK(ckpt_check_crc(&ckpt, ckpt_find(&ckpt, "tied"), &err) == TC_ERR_FORMAT);
    }
    ckpt_close(&ckpt);
    forge_options wrong = {.wrong_crc = true};
    expect_error(write_torch(pickle_of_two, two_storages, wrong), TC_ERR_FORMAT,
                 "member 'data.pkl' does not match its checksum");
    clear_folder();
}

TEST(bad_zip_files_are_refused) {
    forge_options compressed = {.method = 8}, encrypted = {.flags = 1};
    expect_error(write_torch(pickle_of_two, two_storages, compressed), TC_ERR_UNSUPPORTED,
                 "is compressed");
    expect_error(write_torch(pickle_of_two, two_storages, encrypted), TC_ERR_UNSUPPORTED,
                 "is encrypted");
    static const char *const one[] = {"abcdefghijkl", NULL};
    expect_error(write_torch(pickle_of_two, one, plain), TC_ERR_FORMAT,
                 "member 'data/1' is missing");
    static const char *const little[] = {"abcdefghijk", "wxyz", NULL};
    expect_error(write_torch(pickle_of_two, little, plain), TC_ERR_FORMAT,
                 "member 'data/0' is too short: expected 6 elements of F16, found 11 bytes");

    static const struct {
        const char *names[3];
        const char *contents[3];
        int code;
        const char *message;
    } cases[] = {
        {{"x/other.pkl"}, {"!"}, TC_ERR_UNSUPPORTED, "not a PyTorch checkpoint"},
        {{"data.pkl"}, {"!"}, TC_ERR_UNSUPPORTED, "not a PyTorch checkpoint"},
        {{"x/y/data.pkl"}, {"!"}, TC_ERR_UNSUPPORTED, "not a PyTorch checkpoint"},
        {{"x/data.pkl", "y/data.pkl"}, {"!", "!"}, TC_ERR_UNSUPPORTED, "not a PyTorch checkpoint"},
        {{"x/data.pkl", "x/constants.pkl"}, {"!", "!"}, TC_ERR_UNSUPPORTED, "TorchScript"},
        {{"x/data.pkl", "x/byteorder"}, {"!", "big"}, TC_ERR_UNSUPPORTED, "big-endian"},
        {{"x/data.pkl", "x/data.pkl"}, {"!", "!"}, TC_ERR_FORMAT, "'x/data.pkl' occurs twice"},
        {{"x/data.pkl"}, {"\x80\x02}."}, TC_ERR_UNSUPPORTED, "holds no tensors"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        forge_zip zip = {.options = plain};
        for (int m = 0; m < 3 && cases[i].names[m]; m++)
            forge_zip_add(&zip, cases[i].names[m], cases[i].contents[m],
                          strlen(cases[i].contents[m]));
        forge_zip_end(&zip);
        expect_error(write_file("bad.pt", zip.bytes.data, zip.bytes.len), cases[i].code,
                     cases[i].message);
        tc__buf_free(&zip.bytes);
    }
    clear_folder();
}

/* Overwrites the u32 at `at` and opens the archive from memory of exactly its size. */
static int patched_zip(const tc__buf *bytes, size_t at, uint32_t value, tc_error *err) {
    uint8_t *copy = malloc(bytes->len);
    zip_archive zip;
    memcpy(copy, bytes->data, bytes->len);
    memcpy(copy + at, &value, 4);
    int code = zip_open("patched.pt", copy, bytes->len, &zip, err);
    if (!code) zip_close(&zip);
    free(copy);
    return code;
}

TEST(numbers_in_the_zip_directory_are_not_trusted) {
    forge_zip zip = forge_torch(pickle_of_two, two_storages, plain);
    const tc__buf *bytes = &zip.bytes;
    size_t entry = find_bytes(bytes, "PK\1\2", 4), end64 = find_bytes(bytes, "PK\6\6", 4);
    size_t end = find_bytes(bytes, "PK\5\6", 4), locator = find_bytes(bytes, "PK\6\7", 4);
    size_t second = entry + 46 + strlen("archive/data.pkl");
    tc_error err;
    CHECK(!patched_zip(bytes, 0, 0x04034b50, &err));
    const struct {
        size_t at;
        uint32_t value;
        const char *message;
    } cases[] = {{entry + 20, 1u << 30, "two sizes"},
                 {entry + 42, 1u << 30, "outside the file"},
                 {entry + 42, 1, "not where the zip directory says"},
                 {entry + 20, UINT32_MAX, "damaged zip64 field"},
                 {entry + 28, 0xFFFF, "entry of its directory"},
                 {entry, 0, "entry of its directory"},
                 {30, 0x78787878, "not where the zip directory says"},
                 {second + 42, 0, "not where the zip directory says"},
                 {end64 + 24, 99, "makes no sense"},
                 {end64 + 40, 1u << 30, "contradict"},
                 {end64 + 48, 1u << 30, "contradict"},
                 {end64, 0, "zip64 record makes no sense"},
                 {locator + 8, 1u << 30, "zip64 record lies outside"},
                 {end + 12, UINT32_MAX, ""}, /* the zip64 record counts: no error */
                 {end + 8, 0x00030003, "contradict"},
                 {end + 8, 0x00060005, "end record makes no sense"},
                 {end + 18, 7u << 16, "incomplete zip archive"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        int code = patched_zip(bytes, cases[i].at, cases[i].value, &err);
        CHECK_MSG((*cases[i].message != 0) == (code == TC_ERR_FORMAT), "case %zu: %d", i, code);
        CHECK_MSG(strstr(err.message, cases[i].message), "case %zu: %s", i, err.message);
    }
    tc__buf_free(&zip.bytes);

    /* A directory with one entry more than it says. */
    forge_options short_end = {.no_zip64 = true};
    zip = forge_torch(pickle_of_two, two_storages, short_end);
    end = find_bytes(bytes, "PK\5\6", 4);
    CHECK(patched_zip(bytes, end + 8, 0x00040004, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "directory is too long"), "%s", err.message);
    CHECK(patched_zip(bytes, end + 8, 0x00FF00FF, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "directory is too short"), "%s", err.message);
    tc__buf_free(&zip.bytes);

    /* Two entries for the same bytes under different names. */
    forge_zip twice = {.options = plain};
    forge_zip_add(&twice, "x/a", "1234", 4);
    tc__buf copy = {0};
    forge_append(&copy, &twice.directory);
    forge_zip_add(&twice, "x/b", "5678", 4);
    memcpy(twice.directory.data + copy.len + 42, copy.data + 42, 4); /* its offset */
    tc__buf_free(&copy);
    memcpy(twice.directory.data + twice.directory.len - 3, "x/a", 3);
    forge_zip_end(&twice);
    zip_archive archive;
    CHECK(zip_open("twice", (const uint8_t *)twice.bytes.data, twice.bytes.len, &archive, &err) ==
          TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "overlaps another member"), "%s", err.message);
    tc__buf_free(&twice.bytes);
}

/* ---- the contents of a pickle ---- */

TEST(contents_that_are_no_state_dict_are_refused) {
    static const struct {
        const char *pickle;
        int code;
        const char *message;
    } cases[] = {
        {"! @posix.system 'id' t1 R .", TC_ERR_UNSUPPORTED, "'posix.system'"},
        {"! 'posix' 'system' #93 'id' t1 R .", TC_ERR_UNSUPPORTED, "STACK_GLOBAL"},
        {"! tensor:0:Half:6:0:6:1 .", TC_ERR_UNSUPPORTED, "holds a tensor: expected a state dict"},
        {"! ] .", TC_ERR_UNSUPPORTED, "holds a list"},
        {"! } 'epoch' 7 s .", TC_ERR_UNSUPPORTED, "'epoch' is an int, not a tensor"},
        {"! } 'state_dict' } 'w' tensor:0:Half:6:0:6:1 s s .", TC_ERR_UNSUPPORTED,
         "a training checkpoint?"},
        {"! } ( 'w' tensor:0:Half:6:0:6:1 'w' tensor:1:Byte:4:0:4:1 u .", TC_ERR_FORMAT,
         "'w' occurs twice"},
        {"! } '' tensor:0:Half:6:0:6:1 s .", TC_ERR_FORMAT, "is no name"},
        {"! } X #03 #00 #00 #00 a #1b c tensor:0:Half:6:0:6:1 s .", TC_ERR_FORMAT, "is no name"},
        {"! } X #03 #00 #00 #00 a #00 c tensor:0:Half:6:0:6:1 s .", TC_ERR_FORMAT, "is no name"},
        {"! } X #02 #00 #00 #00 #c2 #9b tensor:0:Half:6:0:6:1 s .", TC_ERR_FORMAT, "is no name"},
        {"! } X #02 #00 #00 #00 a #ff tensor:0:Half:6:0:6:1 s .", TC_ERR_FORMAT, "is no name"},
        {"! } 'w' tensor:../../x:Half:6:0:6:1 s .", TC_ERR_FORMAT, "'data/../../x' is missing"},
        {"! } 'w' tensor:0:Half:7:0:6:1 s .", TC_ERR_FORMAT, "member 'data/0' is too short"},
        {"! } 'w' tensor:0:Half:4611686018427387903:0:6:1 s .", TC_ERR_FORMAT, "is too short"},
        {"! } 'w' tensor:0:Half:6:4:6:1 s .", TC_ERR_FORMAT, "a tensor outside its storage"},
        {"! } 'w' tensor:0:Half:6:4:3:0 s .", TC_ERR_FORMAT, "repeats elements"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++)
        expect_error(write_torch(cases[i].pickle, two_storages, plain), cases[i].code,
                     cases[i].message);
    clear_folder();
}

/* ---- legacy ---- */

/* A legacy stream: head, the object, the list of keys; the storages follow. */
static tc__buf legacy_stream(const char *object, const char *keys) {
    tc__buf out = {0};
    forge_legacy_head(&out, true);
    forge_pickle(&out, object);
    forge_pickle(&out, keys);
    return out;
}

static const char legacy_object[] =
    "! } ( 'a' legacy:7001:Half:3:1:2:1 'b' legacy:7000:Int:2:0:2:1 "
    "'tied' legacy:7001:Half:3:0:3:1 u .";
static const char legacy_keys[] = "! ] ( '7000' '7001' e .";

TEST(legacy_streams_are_read_in_the_order_of_their_keys) {
    tc__buf bytes = legacy_stream(legacy_object, legacy_keys);
    checkpoint ckpt;
    tc_error err;
    forge_legacy_storage(&bytes, 2, "ABCDEFGH", 8);
    forge_legacy_storage(&bytes, 3, "abcdef", 6);
    int code = ckpt_open(write_file("legacy.pt", bytes.data, bytes.len), &ckpt, &err);
    CHECK_MSG(!code, "%s", err.message);
    tc__buf_free(&bytes);
    if (code) return;
    CHECK(!strcmp(ckpt.format, "torch legacy") && ckpt.count == 3);
    CHECK(!memcmp(ckpt_find(&ckpt, "a")->data, "cdef", 4));
    CHECK(!memcmp(ckpt_find(&ckpt, "b")->data, "ABCDEFGH", 8));
    CHECK(!memcmp(ckpt_find(&ckpt, "tied")->data, "abcdef", 6));
    CHECK(ckpt_find(&ckpt, "tied")->storage == ckpt_find(&ckpt, "a")->storage);
    CHECK(!ckpt_check_crc(&ckpt, ckpt_find(&ckpt, "a"), &err));
    ckpt_close(&ckpt);
    clear_folder();
}

TEST(bad_legacy_streams_are_refused) {
    static const struct {
        const char *object, *keys;
        uint64_t counts[2];
        size_t bytes[2];
        int code;
        const char *message;
    } cases[] = {
        {legacy_object,
         "! ] ( '7000' '7002' e .",
         {2, 3},
         {8, 6},
         TC_ERR_FORMAT,
         "data that belongs to no tensor"},
        {legacy_object,
         "! ] ( '7000' '7000' e .",
         {2, 2},
         {8, 8},
         TC_ERR_FORMAT,
         "data of a storage twice"},
        {legacy_object, "! ] '7000' a .", {2, 0}, {8, 0}, TC_ERR_FORMAT, "a tensor without data"},
        {legacy_object, "! } .", {2, 3}, {8, 6}, TC_ERR_FORMAT, "no list of storages"},
        {legacy_object, "! ] ( 7000 '7001' e .", {2, 3}, {8, 6}, TC_ERR_FORMAT, "no string"},
        {legacy_object, legacy_keys, {1, 3}, {4, 6}, TC_ERR_FORMAT, "not what tensors expect"},
        {legacy_object, legacy_keys, {2, 4}, {8, 8}, TC_ERR_FORMAT, "not what tensors expect"},
        {legacy_object, legacy_keys, {2, 3}, {8, 5}, TC_ERR_FORMAT, "incomplete"},
        {legacy_object, legacy_keys, {UINT64_MAX, 3}, {8, 6}, TC_ERR_FORMAT, "incomplete"},
        {legacy_object, legacy_keys, {2, 3}, {8, 7}, TC_ERR_FORMAT, "1 bytes after the last"},
        {"! } 'a' tensor:7000:Half:3:0:3:1 s .",
         "! ] '7000' a .",
         {3, 0},
         {6, 0},
         TC_ERR_FORMAT,
         "names no storage"},
        {"! @posix.system 'id' t1 R .",
         legacy_keys,
         {2, 3},
         {8, 6},
         TC_ERR_UNSUPPORTED,
         "'posix.system'"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tc__buf bytes = legacy_stream(cases[i].object, cases[i].keys);
        for (int s = 0; s < 2; s++)
            if (cases[i].bytes[s])
                forge_legacy_storage(&bytes, cases[i].counts[s], "01234567", cases[i].bytes[s]);
        expect_error(write_file("bad.pt", bytes.data, bytes.len), cases[i].code, cases[i].message);
        tc__buf_free(&bytes);
    }
    tc__buf bytes = {0};
    forge_legacy_head(&bytes, false);
    expect_error(write_file("big.pt", bytes.data, bytes.len), TC_ERR_UNSUPPORTED, "big-endian");
    tc__buf_free(&bytes);
    clear_folder();
}

/* ---- safetensors ---- */

#define ST_A "\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]}"

TEST(bad_safetensors_files_are_refused) {
    static const struct {
        const char *header;
        size_t size;
        int code;
        const char *message;
    } cases[] = {
        {"{" ST_A "}", 7, TC_ERR_FORMAT, "past the end of the file"},
        {"{" ST_A "}", 9, TC_ERR_FORMAT, "1 bytes after the last tensor"},
        {"{" ST_A "," ST_A "}", 8, TC_ERR_FORMAT, "overlaps another one"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\","
         "\"shape\":[0],\"data_offsets\":[0,0]}}",
         0, TC_ERR_FORMAT, "'a' occurs twice"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[4,12]}}", 12, TC_ERR_FORMAT,
         "after bytes that belong to none"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,6]}}", 6, TC_ERR_FORMAT,
         "contradict its shape"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[8,0]}}", 8, TC_ERR_FORMAT,
         "no valid data_offsets"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[-8,0]}}", 8, TC_ERR_FORMAT,
         "no valid data_offsets"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0]}}", 8, TC_ERR_FORMAT,
         "no valid data_offsets"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,-2],\"data_offsets\":[0,8]}}", 8, TC_ERR_FORMAT,
         "no size"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2.0,2],\"data_offsets\":[0,8]}}", 8, TC_ERR_FORMAT,
         "no size"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         TC_ERR_FORMAT, "impossible shape"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[9223372036854775807,2],\"data_offsets\":[0,0]}}", 0,
         TC_ERR_FORMAT, "impossible shape"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,2]}}", 2,
         TC_ERR_UNSUPPORTED, "more than 8 dimensions"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2,
         TC_ERR_UNSUPPORTED, "elements of type F8_E4M3"},
        {"{\"a\":{\"dtype\":16,\"shape\":[2],\"data_offsets\":[0,2]}}", 2, TC_ERR_FORMAT,
         "has no dtype"},
        {"{\"a\":{\"dtype\":\"F16\",\"data_offsets\":[0,2]}}", 2, TC_ERR_FORMAT, "has no shape"},
        {"{\"a\":[1]}", 0, TC_ERR_FORMAT, "not described by an object"},
        {"{\"a\\n\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, TC_ERR_FORMAT,
         "is no name"},
        {"{\"\\u0000\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, TC_ERR_FORMAT,
         "is no name"},
        {"{}", 0, TC_ERR_UNSUPPORTED, "holds no tensors"},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0, TC_ERR_UNSUPPORTED, "holds no tensors"},
        {"{\"a\":}", 0, TC_ERR_FORMAT, "not valid JSON"},
        {"{} x", 0, TC_ERR_FORMAT, "not valid JSON"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tc__buf bytes = {0};
        forge_safetensors(&bytes, cases[i].header, "0123456789abcdef", cases[i].size);
        expect_error(write_file("bad.safetensors", bytes.data, bytes.len), cases[i].code,
                     cases[i].message);
        tc__buf_free(&bytes);
    }
    tc__buf bytes = {0};
    forge_u64(&bytes, 1000);
    tc__buf_str(&bytes, "{" ST_A "}");
    expect_error(write_file("short.safetensors", bytes.data, bytes.len), TC_ERR_FORMAT,
                 "incomplete safetensors file: its header has 1000 bytes");
    tc__buf_free(&bytes);
    clear_folder();
}

TEST(safetensors_may_hold_anything_the_format_allows) {
    tc__buf bytes = {0};
    checkpoint ckpt;
    tc_error err;
    forge_safetensors(&bytes,
                      "{\"__metadata__\":{\"format\":\"pt\"},"
                      "\"z\\u002e\\u00e9\":{\"shape\":[],\"dtype\":\"U8\",\"data_offsets\":[8,9]},"
                      "\"empty\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[8,8]},"
                      "\"huge\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,0,16],"
                      "\"data_offsets\":[9,9]}," ST_A "}      ",
                      "0123456789abcdef", 9);
    int code = ckpt_open(write_file("good.bin", bytes.data, bytes.len), &ckpt, &err);
    CHECK_MSG(!code, "%s", err.message);
    tc__buf_free(&bytes);
    if (code) return;
    CHECK(ckpt.count == 4 && !strcmp(ckpt.format, "safetensors"));
    const ckpt_tensor *scalar = ckpt_find(&ckpt, "z.\xc3\xa9");
    CHECK(scalar && scalar->ndim == 0 && scalar->data[0] == '8' && ckpt_elements(scalar) == 1);
    const ckpt_tensor *huge = ckpt_find(&ckpt, "huge");
    CHECK(huge && ckpt_elements(huge) == 0 && ckpt_contiguous(huge));
    ckpt_release(&ckpt, huge);
    CHECK(tensor_crc(ckpt_find(&ckpt, "empty"), 1) == 0);
    ckpt_close(&ckpt);
    clear_folder();
}

/* ---- files that are something else ---- */

TEST(foreign_files_are_named) {
    static const struct {
        const char *bytes;
        size_t len;
        const char *message;
    } cases[] = {{"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4000000000\n", 72,
                  "git-LFS pointer"},
                 {"PYTORCH1\0\0\0\0", 12, "preview format"},
                 {"GGUF\3\0\0\0", 8, "GGUF"},
                 {"tjgg\1\0\0\0", 8, "GGML"},
                 {"\x93NUMPY\1\0", 8, "NumPy"},
                 {"\x89HDF\r\n\x1a\n", 8, "HDF5"},
                 {"\x1f\x8b\x08\0", 4, "gzip"},
                 {"TINYCHAT\1\0\0\0", 12, "converted already"},
                 {"<!DOCTYPE html><html>", 21, "web page"},
                 {"{\"weight_map\": {}}", 18, "JSON text"},
                 {"\x80\x02}q\0.", 6, "bare pickle"},
                 {"\x80\x04\x95", 3, "bare pickle"},
                 {"hello", 5, "is not a checkpoint"},
                 {"\0\0\0\0\0\0\0\0\0\0\0\0", 12, "is not a checkpoint"},
                 {"PK", 2, "is not a checkpoint"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++)
        expect_error(write_file("foreign", cases[i].bytes, cases[i].len), TC_ERR_UNSUPPORTED,
                     cases[i].message);
    char tar[512] = "storages";
    memcpy(tar + 257, "ustar", 5);
    expect_error(write_file("old.tar", tar, sizeof tar), TC_ERR_UNSUPPORTED, "tar archive");
    expect_error(write_file("empty", "", 0), TC_ERR_FORMAT, "is empty");
    expect_error(write_file("cut.pt", "PK\3\4", 4), TC_ERR_FORMAT, "incomplete zip archive");
    expect_error(in_folder("absent.pt"), TC_ERR_IO, "absent.pt");
    clear_folder();
}

/* ---- folders ---- */

/* Writes a file with the tensor `name`: two bytes of U8. */
static void write_one(const char *file, const char *name, const char *two_bytes) {
    char pickle[400];
    const char *storages[] = {two_bytes, NULL};
    snprintf(pickle, sizeof pickle, "! } '%s' tensor:0:Byte:2:0:2:1 s .", name);
    forge_zip zip = forge_torch(pickle, storages, plain);
    write_file(file, zip.bytes.data, zip.bytes.len);
    tc__buf_free(&zip.bytes);
}

static void expect_hf(int code, const char *message) {
    checkpoint ckpt;
    tc_error err;
    int result = ckpt_open_hf(folder, &ckpt, &err);
    CHECK_MSG(result == code && strstr(err.message, message), "expected '%s': %d %s", message,
              result, err.message);
    if (!result) ckpt_close(&ckpt);
}

TEST(split_folders_hold_one_tensor_per_file) {
    checkpoint ckpt;
    tc_error err;
    write_one("layers.10.w.pt", "layers.10.w", "10");
    write_one("layers.9.w.pt", "layers.9.w", "09");
    write_one("layers.1.w.pt", "layers.1.w", "01");
    write_text("config.json", "{}");
    write_text("._layers.1.w.pt", "left behind by another system");
    REQUIRE(!ckpt_open(folder, &ckpt, &err));
    CHECK(ckpt.count == 3 && ckpt.file_count == 3 && ckpt.kind == CKPT_WEIGHTS);
    CHECK_MSG(!strcmp(ckpt.format, "split directory (3 files)"), "%s", ckpt.format);
    CHECK(!strcmp(ckpt.tensors[1].name, "layers.9.w") && !memcmp(ckpt.tensors[1].data, "09", 2));
    CHECK(!strcmp(ckpt.tensors[2].name, "layers.10.w"));
    CHECK_MSG(strstr(ckpt.tensors[2].file, "/layers.10.w.pt"), "%s", ckpt.tensors[2].file);
    ckpt_close(&ckpt);
    CHECK(!ckpt_open_any(folder, &ckpt, &err) && ckpt.count == 3);
    ckpt_close(&ckpt);

    write_one("copy.pt", "layers.1.w", "01");
    CHECK(ckpt_open(folder, &ckpt, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "'layers.1.w' occurs twice, also in "), "%s", err.message);
    unlink(in_folder("copy.pt"));
    forge_zip zip = forge_torch(pickle_of_two, two_storages, plain);
    write_file("model.pt", zip.bytes.data, zip.bytes.len);
    tc__buf_free(&zip.bytes);
    CHECK(ckpt_open(folder, &ckpt, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "model.pt: holds 2 tensors"), "%s", err.message);
    write_text("model.pt", "version https://git-lfs.github.com/spec/v1\n");
    CHECK(ckpt_open(folder, &ckpt, &err) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "model.pt: is a git-LFS pointer"), "%s", err.message);
    clear_folder();
    write_text("config.json", "{}");
    CHECK(ckpt_open(folder, &ckpt, &err) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "no .pt files in this folder: expected"), "%s", err.message);
    write_text("model-00001-of-00002.safetensors", "");
    CHECK(ckpt_open(folder, &ckpt, &err) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "but model-00001-of-00002.safetensors: --awq takes") &&
                  strstr(err.message, "--hf and without --awq"),
              "%s", err.message);
    clear_folder();
}

TEST(search_results_in_a_folder_are_refused) {
    tc__buf bytes = read_file(DATA "search.pt");
    checkpoint ckpt;
    tc_error err;
    write_file("a.pt", bytes.data, bytes.len);
    write_file("b.pt", bytes.data, bytes.len);
    tc__buf_free(&bytes);
    CHECK(ckpt_open_any(folder, &ckpt, &err) == TC_ERR_UNSUPPORTED && ckpt.kind == CKPT_SEARCH);
    CHECK_MSG(strstr(err.message, "AWQ search results"), "%s", err.message);
    clear_folder();
}

TEST(hugging_face_folders_prefer_safetensors) {
    checkpoint ckpt;
    tc_error err;
    tc__buf bytes = {0};
    write_text("config.json", "{}");
    expect_hf(TC_ERR_FORMAT, "no weights in this folder");
    write_one("weights.pth", "lone", "11");
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt_find(&ckpt, "lone"));
    ckpt_close(&ckpt);
    write_one("other.bin", "other", "22");
    expect_hf(TC_ERR_UNSUPPORTED, "2 files that could be checkpoints (other.bin, weights.pth...)");

    unlink(in_folder("other.bin")); /* models that were made of it are not in the way */
    write_text("model.bin", "TINYCHAT and so on");
    write_text("a.bin", "TINYCHAT and so on");
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt_find(&ckpt, "lone"));
    ckpt_close(&ckpt);
    unlink(in_folder("weights.pth"));
    expect_hf(TC_ERR_UNSUPPORTED, "a.bin: is a tinychat model file");
    if (mkfifo(in_folder("pipe.bin"), 0600)) abort();
    expect_hf(TC_ERR_IO, "pipe.bin: is not a regular file");
    unlink(in_folder("pipe.bin"));

    write_one("shard-1.bin", "one", "33");
    write_one("shard-2.bin", "two", "44");
    write_text("pytorch_model.bin.index.json",
               "{\"metadata\": {\"total_size\": 4}, \"weight_map\": {\"one\": \"shard-1.bin\", "
               "\"two\": \"shard-2.bin\"}}");
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt.count == 2 && ckpt.file_count == 2);
    CHECK(!strcmp(ckpt.format, "torch zip, 2 shards") && ckpt_find(&ckpt, "two"));
    ckpt_close(&ckpt);

    write_one("pytorch_model.bin", "whole", "55");
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt.count == 1 && ckpt_find(&ckpt, "whole"));
    ckpt_close(&ckpt);

    forge_safetensors(&bytes, "{\"st\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
                      "66", 2);
    write_file("only.safetensors", bytes.data, bytes.len);
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt_find(&ckpt, "whole"));
    ckpt_close(&ckpt);
    write_text("model.safetensors.index.json", "{\"weight_map\": {\"st\": \"only.safetensors\"}}");
    CHECK(!ckpt_open_hf(folder, &ckpt, &err) && ckpt.count == 1 && ckpt_find(&ckpt, "st"));
    ckpt_close(&ckpt);
    write_file("model.safetensors", bytes.data, bytes.len);
    CHECK(!ckpt_open_any(folder, &ckpt, &err) && !strcmp(ckpt.format, "safetensors"));
    CHECK_MSG(strstr(ckpt.tensors[0].file, "/model.safetensors"), "%s", ckpt.tensors[0].file);
    ckpt_close(&ckpt);
    tc__buf_free(&bytes);
    clear_folder();
}

TEST(indexes_are_checked_against_the_shards) {
    static const struct {
        const char *index;
        int code;
        const char *message;
    } cases[] = {
        {"{\"weight_map\":{\"one\":\"shard-1.bin\",\"x\":\"shard-9.bin\"}}", TC_ERR_FORMAT,
         "/shard-9.bin: shard 2 of 2 is missing"},
        {"{\"weight_map\":{\"one\":\"shard-1.bin\",\"two\":\"shard-1.bin\"}}", TC_ERR_FORMAT,
         "'two' is in none of the shards"},
        {"{\"weight_map\":{\"one\":\"shard-1.bin\",\"two\":\"shard-2.bin\",\"o\":\"shard-2.bin\"}}",
         TC_ERR_FORMAT, "'o' is in none of the shards"},
        {"{\"weight_map\":{\"one\":\"shard-2.bin\",\"two\":\"shard-1.bin\"}}", TC_ERR_FORMAT,
         "lies in another shard"},
        {"{\"weight_map\":{\"one\":\"shard-1.bin\",\"twin\":\"shard-3.bin\"}}", TC_ERR_FORMAT,
         "'one' occurs twice"},
        {"{\"weight_map\":{\"one\":\"../shard-1.bin\"}}", TC_ERR_FORMAT, "not a plain file name"},
        {"{\"weight_map\":{\"one\":\"\"}}", TC_ERR_FORMAT, "not a plain file name"},
        {"{\"weight_map\":{\"one\":\"shard-1.bin\\u0000\"}}", TC_ERR_FORMAT,
         "not a plain file name"},
        {"{\"weight_map\":{\"one\":1}}", TC_ERR_FORMAT, "not a plain file name"},
        {"{\"weight_map\":{}}", TC_ERR_FORMAT, "no weight_map"},
        {"{}", TC_ERR_FORMAT, "no weight_map"},
        {"[]", TC_ERR_FORMAT, "no weight_map"},
        {"{", TC_ERR_FORMAT, "pytorch_model.bin.index.json: not valid JSON"},
        {"", TC_ERR_FORMAT, "not valid JSON"}};
    write_one("shard-1.bin", "one", "11");
    write_one("shard-2.bin", "two", "22");
    write_one("shard-3.bin", "one", "33");
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        write_text("pytorch_model.bin.index.json", cases[i].index);
        expect_hf(cases[i].code, cases[i].message);
    }
    unlink(in_folder("pytorch_model.bin.index.json"));
    if (symlink("nowhere", in_folder("model.safetensors"))) abort();
    expect_hf(TC_ERR_IO, "/model.safetensors");
    clear_folder();
}

/* ---- damage ---- */

/* Opens the bytes as a file, and if that works copies and checks every tensor. */
static int use_all(const void *bytes, size_t len) {
    checkpoint ckpt;
    tc_error err;
    int code = ckpt_open_any(write_file("used", bytes, len), &ckpt, &err);
    CHECK_MSG(code == err.code && (code == TC_OK) == !err.message[0], "%d %s", code, err.message);
    if (code) return code;
    for (size_t i = 0; i < ckpt.count; i++) {
        tensor_crc(&ckpt.tensors[i], 1 << 20);
        if (ckpt_check_crc(&ckpt, &ckpt.tensors[i], &err)) code = err.code;
        ckpt_release(&ckpt, &ckpt.tensors[i]);
    }
    ckpt_close(&ckpt);
    return code;
}

static const char *const damaged_files[] = {DATA "types.pt", DATA "types-legacy.pt",
                                            DATA "types.safetensors", DATA "search.pt"};

TEST(truncation_at_every_byte_is_an_error) {
    for (size_t f = 0; f < TC_COUNT(damaged_files); f++) {
        tc__buf bytes = read_file(damaged_files[f]);
        REQUIRE(bytes.len > 1000);
        CHECK(use_all(bytes.data, bytes.len) == TC_OK);
        size_t step = bytes.len > 8000 ? 7 : 1;
        for (size_t len = 0; len < bytes.len; len += step)
            CHECK_MSG(use_all(bytes.data, len), "%s, %zu of %zu bytes", damaged_files[f], len,
                      bytes.len);
        tc__buf_free(&bytes);
    }
    clear_folder();
}

TEST(flipped_bytes_never_crash) {
    uint32_t seed = 99;
    for (size_t f = 0; f < TC_COUNT(damaged_files); f++) {
        tc__buf bytes = read_file(damaged_files[f]);
        REQUIRE(bytes.len > 1000);
        for (int round = 0; round < 1500; round++) {
            tc__buf copy = {0};
            tc__buf_add(&copy, bytes.data, bytes.len);
            for (int flip = 0; flip < 1 + round % 3; flip++) {
                seed = seed * 1664525u + 1013904223u;
                copy.data[(seed >> 8) % copy.len] ^= (char)(1 + (seed >> 24) % 255);
            }
            use_all(copy.data, copy.len);
            tc__buf_free(&copy);
        }
        tc__buf_free(&bytes);
    }
    clear_folder();
}

/* The readers of containers on memory of exactly the size, where the sanitizers see what a mapped
 * file hides: a read past the end within the last page. */
TEST(containers_are_never_read_past_their_end) {
    tc__buf zip = read_file(DATA "types.pt"), st = read_file(DATA "types.safetensors");
    REQUIRE(zip.len && st.len);
    for (size_t len = 0; len <= zip.len; len++) {
        uint8_t *copy = malloc(len ? len : 1);
        zip_archive archive;
        memcpy(copy, zip.data, len);
        CHECK(!zip_open("zip", copy, len, &archive, NULL) == (len == zip.len));
        zip_close(&archive);
        free(copy);
    }
    for (size_t len = 0; len <= st.len; len++) {
        uint8_t *copy = malloc(len ? len : 1);
        st_file file;
        memcpy(copy, st.data, len);
        CHECK(!st_open("st", copy, len, &file, NULL) == (len == st.len));
        st_close(&file);
        free(copy);
    }
    tc__buf_free(&zip);
    tc__buf_free(&st);
}

/* ---- memory ---- */

/* Pages of a 96 MB storage that were read for its checksum and its data must not stay resident.
 * The file is sparse: its data is zeros. */
TEST(large_storages_do_not_stay_resident) {
    const size_t size = (size_t)96 << 20;
    forge_zip zip = {.options = plain};
    tc__buf pickle = {0};
    tc__buf zeros = {.data = calloc(1, size)};
    REQUIRE(zeros.data);
    forge_pickle(&pickle, "! } 'w' tensor:0:Byte:100663296:0:1024x98304:98304x1 s .");
    forge_zip_add(&zip, "x/data.pkl", pickle.data, pickle.len);
    forge_zip_add(&zip, "x/data/0", zeros.data, size);
    forge_zip_end(&zip);
    const char *path = write_file("large.pt", zip.bytes.data, zip.bytes.len);
    tc__buf_free(&zip.bytes);
    tc__buf_free(&pickle);
    tc__buf_free(&zeros);

    /* In a child, as the peak of this process is history. */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct rusage before, after;
        checkpoint ckpt;
        uint8_t *row = malloc(98304);
        getrusage(RUSAGE_SELF, &before);
        int bad = ckpt_open(path, &ckpt, NULL) || ckpt_check_crc(&ckpt, ckpt.tensors, NULL);
        for (int64_t i = 0; !bad && i < 1024; i++) {
            ckpt_copy(ckpt.tensors, i, 1, row);
            if (i % 128 == 127) ckpt_release(&ckpt, ckpt.tensors);
        }
        getrusage(RUSAGE_SELF, &after);
        long grown = after.ru_maxrss - before.ru_maxrss; /* kilobytes */
        if (grown > 40 << 10) fprintf(stderr, "peak grew by %ld kB\n", grown);
        _exit(bad ? 2 : grown > 40 << 10);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    clear_folder();
}

/* ---- fixtures ---- */

/* Where the unpacked fixtures are; skips the test if nowhere. */
#define FIXTURES()                                                                                 \
    const char *fixtures = getenv("TINYCHAT_FIXTURES");                                            \
    if (!fixtures) SKIP("TINYCHAT_FIXTURES does not name the unpacked fixtures")

static int open_fixture(const char *fixtures, const char *name, checkpoint *ckpt) {
    char path[2 * PROGRAM_PATH];
    tc_error err;
    snprintf(path, sizeof path, "%s/%s", fixtures, name);
    int code = ckpt_open_any(path, ckpt, &err);
    CHECK_MSG(!code, "%s", err.message);
    return code;
}

/* Both have the same tensors, byte for byte, and all checksums are right. */
static void check_same(const char *fixtures, const char *one, const char *other, size_t count) {
    checkpoint a, b;
    tc_error err;
    if (open_fixture(fixtures, one, &a)) return;
    if (open_fixture(fixtures, other, &b)) {
        ckpt_close(&a);
        return;
    }
    CHECK_MSG(a.count == count && b.count == count, "%s: %zu, %s: %zu", one, a.count, other,
              b.count);
    for (size_t i = 0; i < a.count && i < b.count; i++) {
        const ckpt_tensor *x = &a.tensors[i], *y = &b.tensors[i];
        char x_shape[CKPT_SHAPE_TEXT], y_shape[CKPT_SHAPE_TEXT];
        CHECK_MSG(!strcmp(x->name, y->name), "%s, %s", x->name, y->name);
        CHECK_MSG(!strcmp(ckpt_shape_text(x, x_shape), ckpt_shape_text(y, y_shape)), "%s", x->name);
        CHECK_MSG(!ckpt_check_crc(&a, x, &err) && !ckpt_check_crc(&b, y, &err), "%s", err.message);
        CHECK_MSG(tensor_crc(x, 512) == tensor_crc(y, 512), "%s", x->name);
    }
    ckpt_close(&a);
    ckpt_close(&b);
}

TEST(fixtures_are_the_same_in_every_container) {
    FIXTURES();
    check_same(fixtures, "llama-tiny/quant/llama-tiny-w4-g128-awq.pt",
               "llama-tiny/quant/llama-tiny-w4-g128-awq-legacy.pt", 75);
    check_same(fixtures, "llama-tiny/quant/llama-tiny-w4-g128-awq.pt",
               "llama-tiny/quant/llama-tiny-w4-g128-awq", 75);
    check_same(fixtures, "llama-tiny/hf", "llama-tiny/hf-bin", 30);
}

TEST(fixtures_of_every_family_open) {
    static const struct {
        const char *name;
        ckpt_kind kind;
        const char *tensor, *shape;
    } files[] = {{"llama-tiny/quant/llama-tiny-w4-g128-awq-a.pt", CKPT_WEIGHTS,
                  "model.layers.2.mlp.down_proj.qweight", "I32 [640, 32]"},
                 {"llama-tiny/quant/llama-tiny-w4-g128-awq.pt", CKPT_WEIGHTS,
                  "model.layers.2.mlp.down_proj.qweight", "I32 [256, 80]"},
                 {"llama-tiny/quant/llama-tiny-w4-g128-awq-v2.pt", CKPT_WEIGHTS,
                  "model.layers.2.mlp.down_proj.qweight", "I16 [64, 640]"},
                 {"llama-tiny/autoawq", CKPT_WEIGHTS, "model.layers.2.mlp.down_proj.qweight",
                  "I32 [640, 32]"},
                 {"llama-gqa-tiny/hf", CKPT_WEIGHTS, "model.layers.1.self_attn.k_proj.weight",
                  "F16 [128, 512]"},
                 {"falcon-tiny/quant/falcon-tiny-w4-g64-awq.pt", CKPT_WEIGHTS,
                  "transformer.h.1.mlp.act.scales", "F16 [1280]"},
                 {"mpt-tiny/quant/mpt-tiny-w4-g128-awq-v2.pt", CKPT_WEIGHTS,
                  "transformer.blocks.1.ffn.act.scales", "F16 [1024]"},
                 {"qwen2-tiny/quant/qwen2-tiny-w4-g128-awq.pt", CKPT_WEIGHTS,
                  "model.layers.0.self_attn.q_proj.bias", "F16 [256]"},
                 {"llama-tiny/awq_cache/llama-tiny-w4-g128.pt", CKPT_SEARCH,
                  "clip[0] model.layers.0.self_attn.v_proj", "F16 [256, 2, 1]"},
                 {"falcon-tiny/awq_cache/falcon-tiny-w4-g64.pt", CKPT_SEARCH,
                  "scale[3] transformer.h.1.mlp.act -> transformer.h.1.mlp.dense_4h_to_h",
                  "F16 [1280]"}};
    FIXTURES();
    for (size_t i = 0; i < TC_COUNT(files); i++) {
        checkpoint ckpt;
        char shape[CKPT_SHAPE_TEXT];
        tc_error err;
        if (open_fixture(fixtures, files[i].name, &ckpt)) continue;
        const ckpt_tensor *tensor = ckpt_find(&ckpt, files[i].tensor);
        CHECK_MSG(ckpt.kind == files[i].kind, "%s", files[i].name);
        CHECK_MSG(tensor && !strcmp(ckpt_shape_text(tensor, shape), files[i].shape), "%s: %s",
                  files[i].name, tensor ? shape : "not found");
        for (size_t t = 0; t < ckpt.count; t++)
            CHECK_MSG(!ckpt_check_crc(&ckpt, &ckpt.tensors[t], &err), "%s", err.message);
        ckpt_close(&ckpt);
    }
}

/* clang-format off */
TEST_MAIN(
    RUN(opens_what_pytorch_and_safetensors_write)
    RUN(strides_are_those_of_the_file)
    RUN(tensors_are_listed_in_the_order_of_their_numbers)
    RUN(search_results_are_refused_as_weights_and_can_be_listed)
    RUN(damaged_search_results_are_refused)
    RUN(every_way_to_write_a_zip_file_reads_the_same)
    RUN(checksums_are_compared_when_data_is_used)
    RUN(bad_zip_files_are_refused)
    RUN(numbers_in_the_zip_directory_are_not_trusted)
    RUN(contents_that_are_no_state_dict_are_refused)
    RUN(legacy_streams_are_read_in_the_order_of_their_keys)
    RUN(bad_legacy_streams_are_refused)
    RUN(bad_safetensors_files_are_refused)
    RUN(safetensors_may_hold_anything_the_format_allows)
    RUN(foreign_files_are_named)
    RUN(split_folders_hold_one_tensor_per_file)
    RUN(search_results_in_a_folder_are_refused)
    RUN(hugging_face_folders_prefer_safetensors)
    RUN(indexes_are_checked_against_the_shards)
    RUN(truncation_at_every_byte_is_an_error)
    RUN(flipped_bytes_never_crash)
    RUN(containers_are_never_read_past_their_end)
    RUN(large_storages_do_not_stay_resident)
    RUN(fixtures_are_the_same_in_every_container)
    RUN(fixtures_of_every_family_open))
