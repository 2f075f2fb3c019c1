/* The pickle interpreter of convert: what it understands, and that it refuses the rest by name. The
 * pickles lie in memory of exactly their size, so that the sanitizers see a read past the end.
 */
#include "forge.h"

#include "convert/pickle.h"
#include "test.h"

/* One run, kept so that its value can be looked at. */
typedef struct run {
    pkl p;
    pkl_value root;
    uint8_t *bytes;
    tc_error err;
    int code;
} run;

static run run_bytes(const void *bytes, size_t len, pkl_format format) {
    run r = {.bytes = malloc(len ? len : 1)};
    if (len) memcpy(r.bytes, bytes, len);
    tc__cursor at = tc__cursor_make(r.bytes, len);
    r.code = pkl_run(&r.p, "test.pt", format, &at, &r.root, &r.err);
    return r;
}

static run run_words(const char *words) {
    tc__buf text = {0};
    forge_pickle(&text, words);
    run r = run_bytes(text.data ? text.data : "", text.len, PKL_ZIP);
    tc__buf_free(&text);
    return r;
}

static void done(run *r) {
    pkl_close(&r->p);
    free(r->bytes);
}

/* Runs the words and expects this code and this text in the message. */
static void expect(const char *words, int code, const char *message) {
    run r = run_words(words);
    CHECK_MSG(r.code == code && (code == TC_OK || strstr(r.err.message, message)), "%s: %d %s",
              words, r.code, r.err.message);
    done(&r);
}

TEST(reads_a_state_dict) {
    run r = run_words("! @collections.OrderedDict ) R q0 ( 'a' tensor:0:Half:6:0:2x3:3x1 "
                      "'b' tensor:1:BFloat16:10:4:2:3 u "
                      "} '_metadata' @collections.OrderedDict ) R s b .");
    REQUIRE(!r.code && r.root.kind == PKL_DICT);
    CHECK(r.root.as.list->count == 4 && r.p.tensor_count == 2 && r.p.storage_count == 2);
    const pkl_value *b = pkl_get(&r.root, "b");
    REQUIRE(b && b->kind == PKL_TENSOR && b->as.integer == 1);
    const pkl_tensor *tensor = &r.p.tensors[1];
    CHECK(tensor->ndim == 1 && tensor->shape[0] == 2 && tensor->stride[0] == 3);
    CHECK(tensor->offset == 4 && tensor->storage == 1);
    const pkl_storage *storage = &r.p.storages[1];
    CHECK(storage->dtype == CKPT_BF16 && storage->numel == 10);
    CHECK(storage->key_len == 1 && storage->key[0] == '1');
    CHECK(!pkl_get(&r.root, "c") && !pkl_get(b, "a"));
    done(&r);
}

TEST(reads_every_kind_of_value) {
    run r =
        run_words("! ] ( 'x' 7 -8 K #ff M #34 #12 #8a #00 #8a #01 #ff #8a #08 #ff #ff #ff #ff #ff "
                  "#ff #ff #7f G #c0 #04 #00 #00 #00 #00 #00 #00 N T F ) 1 t1 1 2 t2 1 2 3 t3 "
                  "( 1 2 3 4 t } @torch.ByteStorage e 5 a .");
    REQUIRE(!r.code && r.root.kind == PKL_LIST && r.root.as.list->count == 20);
    const pkl_value *v = r.root.as.list->items;
    CHECK(pkl_is(&v[0], "x") && !pkl_is(&v[0], "xy") && !pkl_is(&v[1], "x"));
    CHECK(v[1].kind == PKL_INT && v[1].as.integer == 7 && v[2].as.integer == -8);
    CHECK(v[3].as.integer == 255 && v[4].as.integer == 0x1234);
    CHECK(v[5].kind == PKL_INT && v[5].as.integer == 0);
    CHECK(v[6].as.integer == -1 && v[7].as.integer == INT64_MAX);
    CHECK(v[8].kind == PKL_FLOAT && v[8].as.real == -2.5);
    CHECK(v[9].kind == PKL_NONE && v[10].as.integer == 1 && v[11].as.integer == 0);
    for (uint32_t i = 0; i < 5; i++) {
        CHECK(v[12 + i].kind == PKL_TUPLE && v[12 + i].length == i);
        for (uint32_t j = 0; j < i; j++) CHECK(v[12 + i].as.items[j].as.integer == j + 1);
    }
    CHECK(v[17].kind == PKL_DICT && v[18].kind == PKL_GLOBAL && v[19].as.integer == 5);
    done(&r);
}

TEST(remembers_and_recalls) {
    run r = run_words("! ( 'k' q3 'v' r300 h3 j300 t .");
    REQUIRE(!r.code && r.root.length == 4);
    CHECK(pkl_is(&r.root.as.items[2], "k") && pkl_is(&r.root.as.items[3], "v"));
    done(&r);
    expect("! h0 .", TC_ERR_FORMAT, "never remembered");
    expect("! 'a' q5 h4 .", TC_ERR_FORMAT, "never remembered");
    expect("! 'a' j4294967295 .", TC_ERR_FORMAT, "never remembered");
    expect("! 'a' r4294967295 .", TC_ERR_UNSUPPORTED, "remembers more");
    expect("! q0 .", TC_ERR_FORMAT, "nothing on the stack");
    expect("! ( q0 .", TC_ERR_FORMAT, "nothing on the stack");
}

TEST(knows_every_storage_class) {
    static const struct {
        const char *name;
        ckpt_dtype dtype;
    } cases[] = {{"Double", CKPT_F64},    {"Float", CKPT_F32}, {"Half", CKPT_F16},
                 {"BFloat16", CKPT_BF16}, {"Long", CKPT_I64},  {"Int", CKPT_I32},
                 {"Short", CKPT_I16},     {"Char", CKPT_I8},   {"Byte", CKPT_U8},
                 {"Bool", CKPT_BOOL}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        char words[100];
        snprintf(words, sizeof words, "! tensor:0:%s:4:0:4:1 .", cases[i].name);
        run r = run_words(words);
        CHECK_MSG(!r.code && r.p.storages[0].dtype == cases[i].dtype, "%s", cases[i].name);
        done(&r);
    }
    expect("! tensor:0:ComplexFloat:4:0:4:1 .", TC_ERR_UNSUPPORTED, "'torch.ComplexFloatStorage'");
}

TEST(rebuilds_in_every_known_way) {
#define STORAGE "( 'storage' @torch.HalfStorage '0' 'cpu' 6 t Q "
    expect("! @torch._utils._rebuild_tensor ( " STORAGE "0 ( 6 t ( 1 t t R .", TC_OK, "");
    expect("! @torch._utils._rebuild_tensor_v2 ( " STORAGE "0 ( 6 t ( 1 t F } N t R .", TC_OK, "");
    expect("! @torch._utils._rebuild_tensor_v2 ( " STORAGE "0 ( 6 t ( 1 t F } } t R .", TC_OK, "");
    expect("! @torch._utils._rebuild_parameter ( tensor:0:Half:6:0:6:1 T } t R .", TC_OK, "");
    expect("! @torch._utils._rebuild_tensor_v2 ( " STORAGE "0 ( 6 t ( 1 t F } } 'neg' T s t R .",
           TC_ERR_UNSUPPORTED, "lazily negated");
    expect("! @torch._utils._rebuild_tensor_v2 ( " STORAGE "0 ( 6 t ( 1 t F t R .", TC_ERR_FORMAT,
           "wrong number of arguments");
    expect("! @torch._utils._rebuild_tensor ( " STORAGE "0 ( 6 t t R .", TC_ERR_FORMAT,
           "wrong number of arguments");
    expect("! @torch._utils._rebuild_tensor ( 5 0 ( 6 t ( 1 t t R .", TC_ERR_FORMAT,
           "without storage");
    expect("! @torch._utils._rebuild_tensor ( " STORAGE "N ( 6 t ( 1 t t R .", TC_ERR_FORMAT,
           "without storage or offset");
    expect("! @torch._utils._rebuild_tensor ( " STORAGE "0 6 ( 1 t t R .", TC_ERR_FORMAT,
           "shape is no tuple");
    expect("! @torch._utils._rebuild_tensor ( " STORAGE "0 ( T t ( 1 t t R .", TC_ERR_FORMAT,
           "no natural number");
    expect("! @torch._utils._rebuild_parameter ( 5 T } t R .", TC_ERR_FORMAT, "without a tensor");
#undef STORAGE
}

TEST(tensors_stay_inside_their_storage) {
    static const char *const good[] = {"6:0:2x3:3x1",
                                       "6:0:3x2:1x3",
                                       "6:5:-:-",
                                       "6:0:6:1",
                                       "6:1:5:1",
                                       "6:1:3:2",
                                       "6:0:0x7:7x1",
                                       "6:6:0:1",
                                       "0:0:0:1",
                                       "1:0:1x1:5x5",
                                       "6:0:1x6:99x1",
                                       "6:3:1x1x1x1x1x1x1x1:1x1x1x1x1x1x1x1",
                                       "6:0:0x9223372036854775807x4:1x1x1"};
    static const char *const bad[] = {
        "6:0:7:1", "6:1:6:1", "6:6:-:-", "6:0:2x3:4x1", "6:0:2:6", "6:0:3:3", "0:0:-:-", "0:0:1:1",
        "6:7:0:1", "6:0:2:9223372036854775807", "6:9223372036854775807:2:1",
        "6:0:9223372036854775807x9223372036854775807:1x1", "6:0:4294967296x4294967296:0x0",
        "6:0:2x4611686018427387904:4611686018427387904x2",
        /* broadcast: more elements than the storage has */
        "6:0:1000x6:0x1", "1:0:2:0", "6:0:4x4:1x1",
        /* negative */
        "6:-1:2:1", "6:5:2:-1", "6:0:-2:1", "6:0:-2x-3:3x1",
        /* ranks */
        "6:0:2x3:3", "6:0:6:1x1", "6:0:-:1"};
    char words[200];
    for (size_t i = 0; i < TC_COUNT(good); i++) {
        snprintf(words, sizeof words, "! tensor:0:Half:%s .", good[i]);
        expect(words, TC_OK, "");
    }
    for (size_t i = 0; i < TC_COUNT(bad); i++) {
        snprintf(words, sizeof words, "! tensor:0:Half:%s .", bad[i]);
        expect(words, TC_ERR_FORMAT, "a tensor ");
    }
    expect("! tensor:0:Half:6:0:1x1x1x1x1x1x1x1x1:1x1x1x1x1x1x1x1x1 .", TC_ERR_UNSUPPORTED,
           "more than 8 dimensions");
    expect("! tensor:0:Half:4611686018427387904:0:1:1 .", TC_ERR_FORMAT, "impossible size");
    expect("! tensor:0:Half:-1:0:1:1 .", TC_ERR_FORMAT, "names no storage");
}

TEST(persistent_ids_name_storages) {
    expect("! 'x' Q .", TC_ERR_FORMAT, "no tuple");
    expect("! Q .", TC_ERR_FORMAT, "no tuple");
    expect("! ) Q .", TC_ERR_FORMAT, "no tuple");
    expect("! ( 'module' @torch.HalfStorage 'file' 'source' t Q .", TC_ERR_UNSUPPORTED,
           "whole module");
    expect("! ( 'other' @torch.HalfStorage '0' 'cpu' 6 t Q .", TC_ERR_FORMAT, "names no storage");
    expect("! ( 'storage' 'HalfStorage' '0' 'cpu' 6 t Q .", TC_ERR_FORMAT, "names no storage");
    expect("! ( 'storage' @collections.OrderedDict '0' 'cpu' 6 t Q .", TC_ERR_FORMAT,
           "names no storage");
    expect("! ( 'storage' @torch.HalfStorage 0 'cpu' 6 t Q .", TC_ERR_FORMAT, "names no storage");
    expect("! ( 'storage' @torch.HalfStorage '0' 'cpu' 6 N t Q .", TC_ERR_FORMAT,
           "names no storage");
    tc__buf text = {0};
    forge_pickle(&text, "! legacy:0:Half:6:0:6:1 .");
    run r = run_bytes(text.data, text.len, PKL_LEGACY);
    CHECK(!r.code && r.root.kind == PKL_TENSOR);
    done(&r);
    text.len = 0;
    forge_pickle(&text, "! ( 'storage' @torch.HalfStorage '0' 'cpu' 6 ( '1' 0 3 t t Q .");
    r = run_bytes(text.data, text.len, PKL_LEGACY);
    CHECK(r.code == TC_ERR_UNSUPPORTED && strstr(r.err.message, "view of another"));
    done(&r);
    tc__buf_free(&text);
}

TEST(globals_outside_the_list_are_named) {
    static const char *const globals[] = {"posix.system",
                                          "os.system",
                                          "nt.system",
                                          "builtins.eval",
                                          "builtins.exec",
                                          "builtins.getattr",
                                          "__builtin__.eval",
                                          "subprocess.Popen",
                                          "torch.load",
                                          "torch.hub.load",
                                          "torch.storage._load_from_bytes",
                                          "torch.storage.UntypedStorage",
                                          "torch.jit.load",
                                          "torch._utils._rebuild_tensor_v3",
                                          "torch._utils._rebuild_sparse_tensor",
                                          "torch._utils._rebuild_qtensor",
                                          "torch._utils._rebuild_tensor_v22",
                                          "torch._utils._rebuild_tenso",
                                          "torch._utils.HalfStorage",
                                          "torchx.HalfStorage",
                                          "tor.HalfStorage",
                                          "torch.HalfStorageX",
                                          "torch.Half",
                                          "collections.Counter",
                                          "collections.OrderedDic",
                                          "numpy.core.multiarray._reconstruct",
                                          "argparse.Namespace"};
    for (size_t i = 0; i < TC_COUNT(globals); i++) {
        char words[200], quoted[100];
        snprintf(words, sizeof words, "! @%s ( 'touch' t R .", globals[i]);
        snprintf(quoted, sizeof quoted, "'%s'", globals[i]);
        expect(words, TC_ERR_UNSUPPORTED, quoted);
        expect(words, TC_ERR_UNSUPPORTED, "nothing was executed");
    }
    expect("! c", TC_ERR_FORMAT, "ends inside a global");
    expect("! c a #0a b", TC_ERR_FORMAT, "ends inside a global");
    expect("! c #1b #5b #0a b #0a .", TC_ERR_UNSUPPORTED, "'?[.b'"); /* no escape sequences */
}

TEST(allowed_globals_do_only_what_they_are_for) {
    expect("! @collections.OrderedDict ( ] t R .", TC_ERR_FORMAT, "with arguments");
    expect("! @torch.HalfStorage tensor:0:Half:1:0:1:1 t1 R .", TC_ERR_FORMAT,
           "call of a storage class");
    expect("! @torch.DoubleStorage ( 4 t R .", TC_ERR_FORMAT, "call of a storage class");
    expect("! @torch.ByteStorage ( 4 t R .", TC_ERR_FORMAT, "call of a storage class");
    expect("! 'posix.system' ( 'id' t R .", TC_ERR_FORMAT, "cannot be called");
    expect("! @collections.OrderedDict ] R .", TC_ERR_FORMAT, "cannot be called");
    expect("! @collections.OrderedDict ( 'a' t b .", TC_ERR_UNSUPPORTED, "a state for a class");
    expect("! } } 'a' 1 s b .", TC_ERR_UNSUPPORTED, "other than _metadata");
    expect("! } } ( '_metadata' 1 'x' 2 u b .", TC_ERR_UNSUPPORTED, "other than _metadata");
    expect("! ] } '_metadata' } s b .", TC_ERR_UNSUPPORTED, "a state for a list");
    expect("! tensor:0:Half:1:0:1:1 } '_metadata' } s b .", TC_ERR_UNSUPPORTED,
           "a state for a tensor");
}

TEST(opcodes_outside_the_list_are_named) {
    static const struct {
        unsigned op;
        const char *name;
    } refused[] = {{'0', "POP"},
                   {'1', "POP_MARK"},
                   {'2', "DUP"},
                   {'F', "FLOAT"},
                   {'I', "INT"},
                   {'L', "LONG"},
                   {'B', "BINBYTES"},
                   {'C', "SHORT_BINBYTES"},
                   {'P', "PERSID"},
                   {'S', "STRING"},
                   {'T', "BINSTRING"},
                   {'U', "SHORT_BINSTRING"},
                   {'V', "UNICODE"},
                   {'d', "DICT"},
                   {'g', "GET"},
                   {'i', "INST"},
                   {'l', "LIST"},
                   {'o', "OBJ"},
                   {'p', "PUT"},
                   {0x81, "NEWOBJ"},
                   {0x82, "EXT1"},
                   {0x83, "EXT2"},
                   {0x84, "EXT4"},
                   {0x8b, "LONG4"},
                   {0x8c, "SHORT_BINUNICODE"},
                   {0x8d, "BINUNICODE8"},
                   {0x8e, "BINBYTES8"},
                   {0x8f, "EMPTY_SET"},
                   {0x90, "ADDITEMS"},
                   {0x91, "FROZENSET"},
                   {0x92, "NEWOBJ_EX"},
                   {0x93, "STACK_GLOBAL"},
                   {0x94, "MEMOIZE"},
                   {0x95, "FRAME"},
                   {0x96, "BYTEARRAY8"},
                   {0x97, "NEXT_BUFFER"},
                   {0x98, "READONLY_BUFFER"}};
    static const char allowed[] = "(.GJKMNQRX]abcehjqrst)u}\x80\x85\x86\x87\x88\x89\x8a";
    unsigned named = 0;
    for (unsigned op = 0; op < 256; op++) {
        uint8_t bytes[] = {0x80, 2, (uint8_t)op, '.'};
        run r = run_bytes(bytes, sizeof bytes, PKL_ZIP);
        const char *name = NULL;
        for (size_t i = 0; i < TC_COUNT(refused); i++)
            if (refused[i].op == op) name = refused[i].name, named++;
        if (op && strchr(allowed, (int)op))
            CHECK_MSG(!name && !strstr(r.err.message, "opcode"), "0x%02x", op);
        else if (name)
            CHECK_MSG(r.code == TC_ERR_UNSUPPORTED && strstr(r.err.message, name), "%s: %s", name,
                      r.err.message);
        else
            CHECK_MSG(r.code == TC_ERR_FORMAT && strstr(r.err.message, "no such opcode"), "0x%02x",
                      op);
        done(&r);
    }
    CHECK(named == TC_COUNT(refused));
    /* The usual ways to smuggle a call past a list of globals. */
    expect("! 'posix' 'system' #93 'id' t1 R .", TC_ERR_UNSUPPORTED, "STACK_GLOBAL");
    expect("! ( 'id' i p #0a .", TC_ERR_UNSUPPORTED, "INST");
    expect("! ( @torch.ByteStorage 'id' o .", TC_ERR_UNSUPPORTED, "OBJ");
    expect("#80 #04 #95 #00 #00 #00 #00 #00 #00 #00 #00 .", TC_ERR_UNSUPPORTED, "FRAME");
}

TEST(protocols_2_to_5) {
    expect("#80 #02 N .", TC_OK, "");
    expect("#80 #05 N .", TC_OK, "");
    expect("#80 #01 N .", TC_ERR_UNSUPPORTED, "protocol");
    expect("#80 #06 N .", TC_ERR_UNSUPPORTED, "protocol");
    expect("N .", TC_OK, "");
}

TEST(misuse_of_the_stack_is_an_error) {
    static const char *const cases[] = {
        "t1 .",        "1 t2 .",    "1 2 t3 .",    "t .",     "a .",       "] a .",
        "1 2 a .",     "e .",       "( e .",       "( 1 e .", "1 ( 2 e .", "s .",
        "} s .",       "} 'a' s .", "1 'a' 2 s .", "u .",     "( u .",     "1 ( 'a' 2 u .",
        "} ( 'a' u .", "R .",       "1 R .",       "b .",     "} b .",     "( R .",
        "( ( R .",     "( t1 .",    "1 ( t2 .",    "] ( a .", "} ( 1 s .", "( ( b .",
        ".",           "1 2 .",     "( .",         "1 ( .",   "Q .",       "( Q .",
        "] ( ( e ."};
    for (size_t i = 0; i < TC_COUNT(cases); i++) expect(cases[i], TC_ERR_FORMAT, "byte ");
    expect("} 1 2 s .", TC_ERR_UNSUPPORTED, "a key that is an int");
    expect("} ( tensor:0:Half:1:0:1:1 2 u .", TC_ERR_UNSUPPORTED, "a key that is a tensor");
}

TEST(cycles_and_shared_objects_are_harmless) {
    expect("! ] q0 h0 a .", TC_OK, "");
    expect("! } q0 'self' h0 s .", TC_OK, "");
    expect("! ] q0 ( h0 h0 h0 e h0 a .", TC_OK, "");
    run r = run_words("! } ( 'a' tensor:0:Half:1:0:1:1 q9 'b' h9 'a' h9 u .");
    REQUIRE(!r.code && r.p.tensor_count == 1 && r.root.as.list->count == 6);
    done(&r);
}

TEST(memory_is_limited) {
    static const struct {
        const char *repeated;
        size_t times;
        const char *message;
    } cases[] = {{"(", 1u << 17, "stack is deeper"},
                 {"N", 1u << 17, "stack is deeper"},
                 {"]a", 8u << 20, "more objects"},
                 {"K\1\205a", 16u << 20, "more objects"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tc__buf text = {0};
        tc__buf_str(&text, "]");
        for (size_t n = 0; n < cases[i].times; n++) tc__buf_str(&text, cases[i].repeated);
        run r = run_bytes(text.data, text.len, PKL_ZIP);
        CHECK_MSG(r.code == TC_ERR_UNSUPPORTED && strstr(r.err.message, cases[i].message),
                  "%zu: %s", i, r.err.message);
        done(&r);
        tc__buf_free(&text);
    }
    tc__buf text = {0};
    forge_pickle(&text, "} 'a'");
    forge_byte(&text, 'X');
    forge_u32(&text, UINT32_MAX);
    run r = run_bytes(text.data, text.len, PKL_ZIP);
    CHECK(r.code == TC_ERR_FORMAT && strstr(r.err.message, "ends too early"));
    done(&r);
    tc__buf_free(&text);
}

static const char small[] = "! @collections.OrderedDict ) R q0 ( 'layers.0.w' q1 "
                            "tensor:0:Half:6:0:2x3:3x1 'b' tensor:1:Int:2147483648:9:1:1 "
                            "'scale' G #3f #f0 #00 #00 #00 #00 #00 #00 'list' ] ( 1 N T 'x' e u "
                            "} '_metadata' } s b .";

TEST(truncation_is_always_an_error) {
    tc__buf text = {0};
    forge_pickle(&text, small);
    run r = run_bytes(text.data, text.len, PKL_ZIP);
    CHECK_MSG(!r.code, "%s", r.err.message);
    done(&r);
    for (size_t len = 0; len < text.len; len++) {
        r = run_bytes(text.data, len, PKL_ZIP);
        CHECK_MSG(r.code == TC_ERR_FORMAT, "%zu of %zu bytes", len, text.len);
        done(&r);
    }
    tc__buf_free(&text);
}

TEST(flipped_bytes_never_crash) {
    tc__buf text = {0};
    forge_pickle(&text, small);
    uint32_t seed = 7;
    unsigned errors = 0;
    for (int round = 0; round < 30000; round++) {
        char copy[2048];
        memcpy(copy, text.data, text.len);
        for (int flip = 0; flip < 1 + round % 4; flip++) {
            seed = seed * 1664525u + 1013904223u;
            copy[(seed >> 8) % text.len] = (char)(seed >> 24);
        }
        run r = run_bytes(copy, text.len, round % 2 ? PKL_ZIP : PKL_LEGACY);
        errors += r.code != TC_OK;
        done(&r);
    }
    CHECK(errors > 15000); /* the legacy half at least */
    tc__buf_free(&text);
}

/* clang-format off */
TEST_MAIN(
    RUN(reads_a_state_dict)
    RUN(reads_every_kind_of_value)
    RUN(remembers_and_recalls)
    RUN(knows_every_storage_class)
    RUN(rebuilds_in_every_known_way)
    RUN(tensors_stay_inside_their_storage)
    RUN(persistent_ids_name_storages)
    RUN(globals_outside_the_list_are_named)
    RUN(allowed_globals_do_only_what_they_are_for)
    RUN(opcodes_outside_the_list_are_named)
    RUN(protocols_2_to_5)
    RUN(misuse_of_the_stack_is_an_error)
    RUN(cycles_and_shared_objects_are_harmless)
    RUN(memory_is_limited)
    RUN(truncation_is_always_an_error)
    RUN(flipped_bytes_never_crash))
