/* From CUDA source to a loadable image: the cache of compiled kernels, the file that carries them,
 * and what is said of mistakes. NVRTC needs no GPU for that; the engine's own search finds it. */
#include "program.h"
#include "src/jit.h"
#include "test.h"

/* ---- the cache ---- */

/* A folder for kernel sources and one for the cache, named in the environment. */
typedef struct place {
    char folder[PROGRAM_PATH], cache[PROGRAM_PATH + 8];
} place;

static const tc__jit_target jit_target = {80, false, false, 99000, 163 << 10};
static const char jit_text[] =
    "#include \"prelude.cuh\"\n"
    "extern \"C\" __global__ void f(float *x) { x[0] = warp_sum(x[threadIdx.x]); }\n";

static bool place_open(place *p) {
    if (!program_folder(p->folder)) return false;
    snprintf(p->cache, sizeof p->cache, "%s/cache", p->folder);
    setenv("TINYCHAT_CACHE", p->cache, 1);
    return true;
}

static void place_close(const place *p) {
    unsetenv("TINYCHAT_CACHE");
    unsetenv("TINYCHAT_KERNELS");
    program_remove_folder(p->cache);
    program_remove_folder(p->folder);
}

/* Compiles one program into `image`; `nvrtc` false: in a world without NVRTC. */
static int jit_once(const char *text, const tc__jit_target *target, bool nvrtc, tc__buf *image,
                    bool *cached, tc_error *err) {
    const char *chosen = getenv("TINYCHAT_NVRTC");
    char *kept = chosen ? tc__copy(chosen, strlen(chosen)) : NULL;
    tc__jit_program program;
    memset(&program, 0, sizeof program);
    program.name = "test";
    program.text = text;
    if (!nvrtc) setenv("TINYCHAT_NVRTC", "/nonexistent/libnvrtc.so", 1);
    int code = tc__jit(&program, 1, target, NULL, err);
    if (!nvrtc && kept)
        setenv("TINYCHAT_NVRTC", kept, 1);
    else if (!nvrtc)
        unsetenv("TINYCHAT_NVRTC");
    free(kept);
    *cached = program.cached;
    tc__buf_free(image);
    *image = program.image;
    return code;
}

/* The only file in a folder. False unless there is exactly one. */
static bool only_file(const char *folder, char path[3 * PROGRAM_PATH]) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int files = 0;
    while (dir && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.' || strlen(entry->d_name) > 2) {
            snprintf(path, 3 * PROGRAM_PATH, "%s/%s", folder, entry->d_name);
            files++;
        }
    if (dir) closedir(dir);
    return files == 1;
}

static void write_file(const char *path, const void *bytes, size_t len) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, len, file) == len);
    if (file) CHECK(fclose(file) == 0);
}

static bool need_nvrtc(tc_error *err) {
    tc__nvrtc nvrtc;
    int code = tc__nvrtc_open(&nvrtc, 0, err);
    if (!code) tc__nvrtc_close(&nvrtc);
    return code == TC_OK;
}

TEST(a_hit_needs_no_nvrtc) {
    tc__jit_target other = jit_target;
    tc__buf first = {0}, again = {0};
    bool cached;
    tc_error err;
    place p;
    char other_text[sizeof jit_text + 8];
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    CHECK_MSG(jit_once(jit_text, &jit_target, true, &first, &cached, &err) == TC_OK, "%s",
              err.message);
    CHECK(!cached && first.len > 500 && !memcmp(first.data, "\177ELF", 4));
    CHECK_MSG(jit_once(jit_text, &jit_target, false, &again, &cached, &err) == TC_OK, "%s",
              err.message);
    CHECK(cached && again.len == first.len && !memcmp(again.data, first.data, first.len));

    /* whatever the image depends on is part of the key */
    snprintf(other_text, sizeof other_text, "%s//\n", jit_text);
    CHECK(jit_once(other_text, &jit_target, false, &again, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "TINYCHAT_NVRTC"), "%s", err.message);
    other.arch = 86;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.driver++;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.shared_limit--;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.as_ptx = true;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    CHECK(jit_once(jit_text, &other, true, &again, &cached, &err) == TC_OK && !cached);
    CHECK(again.data && strstr(again.data, ".target sm_80"));
    tc__buf_free(&first);
    tc__buf_free(&again);
    place_close(&p);
}

/* What only sm_90a has is there where it is asked for, in an image of its own. */
TEST(the_target_of_one_architecture_is_apart) {
    static const char text[] = "extern \"C\" __global__ void f(int *x) {\n"
                               "#ifdef __CUDA_ARCH_FEAT_SM90_ALL\n"
                               "    asm volatile(\"wgmma.fence.sync.aligned;\");\n"
                               "#endif\n"
                               "}\n";
    tc__jit_target target = {90, false, false, 99000, 227 << 10};
    tc__buf plain = {0}, specific = {0};
    bool cached;
    place p;
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    int major = nvrtc.major;
    tc__nvrtc_close(&nvrtc);
    if (major < 12) SKIP("NVRTC %d does not know sm_90a", major);
    REQUIRE(place_open(&p));
    CHECK(jit_once(text, &target, true, &plain, &cached, &err) == TC_OK && !cached);
    target.specific = true;
    CHECK_MSG(jit_once(text, &target, true, &specific, &cached, &err) == TC_OK, "%s", err.message);
    CHECK(!cached);
    CHECK(plain.len && specific.len &&
          (plain.len != specific.len || memcmp(plain.data, specific.data, plain.len)));
    tc__buf_free(&plain);
    tc__buf_free(&specific);
    place_close(&p);
}

/* What came out of tc__jit_import is what went into tc__jit_export, or a reason is given. */
static void check_import(const char *path, const char *text, const tc__jit_target *target,
                         int expected, const char *words, const tc__buf *image) {
    tc__jit_program program;
    tc_error err = {0, ""};
    memset(&program, 0, sizeof program);
    program.name = "test", program.text = text;
    int code = tc__jit_import(path, "another world", &program, 1, target, &err);
    CHECK_MSG(code == expected, "%d: %s", code, err.message);
    CHECK_MSG(!code || strstr(err.message, words), "%s", err.message);
    CHECK(
        code || !image ||
        (program.image.len == image->len && !memcmp(program.image.data, image->data, image->len)));
    tc__buf_free(&program.image);
}

TEST(kernels_can_be_carried_to_another_machine) {
    static const char other_text[] = "extern \"C\" __global__ void g() {}\n";
    tc__jit_target target = jit_target, other = jit_target;
    tc__jit_program programs[2];
    char path[2 * PROGRAM_PATH];
    tc__buf bytes = {0};
    tc__map map;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    memset(programs, 0, sizeof programs);
    programs[0].name = programs[1].name = "test";
    programs[0].text = jit_text, programs[1].text = other_text;
    REQUIRE(tc__jit(programs, 2, &target, NULL, &err) == TC_OK);
    snprintf(path, sizeof path, "%s/kernels", p.folder);
    CHECK(tc__jit_export(path, "this world", programs, 2, &target, &err) == TC_OK);
    unsetenv("TINYCHAT_CACHE");
    setenv("TINYCHAT_NVRTC", "/nonexistent/libnvrtc.so", 1);
    target.driver = 12080; /* another driver may take them */
    check_import(path, jit_text, &target, TC_OK, "", &programs[0].image);
    check_import(path, other_text, &target, TC_OK, "", &programs[1].image);
    other.arch = 86;
    check_import(path, jit_text, &other, TC_ERR_UNSUPPORTED,
                 "kernels for this world; needed are those for another world", NULL);
    check_import(path, "\n", &target, TC_ERR_UNSUPPORTED, "export them anew", NULL);
    REQUIRE(tc__map_open(path, &map, &err) == TC_OK);
    tc__buf_add(&bytes, map.data, map.size);
    tc__map_close(&map);
    for (size_t at = 0; at < bytes.len; at += at < 600 ? 1 : 401) { /* a byte is wrong */
        bytes.data[at] ^= 4;
        write_file(path, bytes.data, bytes.len);
        bool text = at >= 8 && at < 248; /* for people: any text will do */
        if (!text) check_import(path, jit_text, &target, TC_ERR_FORMAT, path, NULL);
        bytes.data[at] ^= 4;
    }
    for (size_t len = 0; len < bytes.len; len += len < 600 ? 7 : 401) { /* the end is missing */
        write_file(path, bytes.data, len);
        check_import(path, jit_text, &target, TC_ERR_FORMAT, path, NULL);
    }
    check_import("/nonexistent/kernels", jit_text, &target, TC_ERR_IO, "/nonexistent", NULL);
    unsetenv("TINYCHAT_NVRTC");
    for (int i = 0; i < 2; i++) tc__buf_free(&programs[i].image);
    tc__buf_free(&bytes);
    place_close(&p);
}

TEST(damaged_cache_files_are_compiled_anew) {
    tc__buf good = {0}, image = {0};
    static const char other_text[] = "extern \"C\" __global__ void f() {}\n";
    char path[3 * PROGRAM_PATH] = "";
    bool cached;
    tc__map map;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    CHECK(jit_once(jit_text, &jit_target, true, &good, &cached, &err) == TC_OK);
    REQUIRE(only_file(p.cache, path));
    REQUIRE(tc__map_open(path, &map, &err) == TC_OK);
    size_t n = map.size;
    uint8_t *entry = malloc(n + 1);
    memcpy(entry, map.data, n);
    entry[n] = 0;
    tc__map_close(&map);

    /* not trusted: without NVRTC every one of these is an error */
    for (size_t at = 0; at < n; at += at < 64 ? 1 : n / 50) {
        entry[at] ^= 0x10;
        write_file(path, entry, n);
        entry[at] ^= 0x10;
        if (at >= 36 && at < 40) continue; /* NVRTC's version: for people */
        CHECK_MSG(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE,
                  "byte %zu of %zu may be wrong", at, n);
    }
    for (size_t length = 0; length <= n + 1; length += length < 64 ? 7 : n / 20) {
        if (length == n) continue;
        write_file(path, entry, length);
        CHECK_MSG(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE,
                  "%zu of %zu bytes are enough", length, n);
    }
    write_file(path, entry, n + 1);
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE);

    /* compiled anew, and the file is whole again */
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
    CHECK(image.len == good.len && !memcmp(image.data, good.data, good.len));
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);

    /* an intact entry under another's name */
    CHECK(unlink(path) == 0);
    CHECK(jit_once(other_text, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
    CHECK(only_file(p.cache, path));
    write_file(path, entry, n);
    CHECK(jit_once(other_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE);
    free(entry);
    tc__buf_free(&good);
    tc__buf_free(&image);
    place_close(&p);
}

TEST(a_cache_that_cannot_be_written_costs_only_time) {
    char path[3 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    snprintf(path, sizeof path, "%s/file", p.folder);
    write_file(path, "", 0);
    snprintf(path, sizeof path, "%s/file/below", p.folder); /* no folder can be made there */
    const char *const folders[] = {path, "/proc/tinychat", "/dev/null"};
    for (size_t i = 0; i < TC_COUNT(folders); i++) {
        setenv("TINYCHAT_CACHE", folders[i], 1);
        CHECK_MSG(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK, "%s: %s",
                  folders[i], err.message);
        CHECK(!cached && image.len > 500);
    }
    setenv("TINYCHAT_CACHE", p.cache, 1);
    CHECK(mkdir(p.cache, 0700) == 0);
    if (geteuid() != 0) { /* root may write anywhere */
        CHECK(chmod(p.cache, 0500) == 0);
        CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
        CHECK(chmod(p.cache, 0700) == 0);
    }
    CHECK(!only_file(p.cache, path)); /* nothing is left behind */
    tc__buf_free(&image);
    place_close(&p);
}

/* The folders by which the cache is found, in this order; none at all is no error. */
TEST(the_cache_is_where_it_is_expected) {
    static const char *const names[] = {"TINYCHAT_CACHE", "XDG_CACHE_HOME", "HOME"};
    static const char *const values[] = {"/a/own", "/a/xdg", "/a/home"};
    static const char *const want[] = {"/a/own", "/a/xdg/tinychat", "/a/home/.cache/tinychat", ""};
    char *kept[3], path[256];
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        kept[i] = value ? tc__copy(value, strlen(value)) : NULL;
        setenv(names[i], values[i], 1);
    }
    for (int i = 0; i <= 3; i++) {
        tc__jit_folder(path, sizeof path);
        CHECK_MSG(!strcmp(path, want[i]), "%s, not %s", path, want[i]);
        if (i < 3) setenv(names[i], "", 1); /* empty is as good as not set */
    }
    for (int i = 0; i < 3; i++) {
        unsetenv(names[i]);
        if (kept[i]) setenv(names[i], kept[i], 1);
        free(kept[i]);
    }
}

TEST(processes_may_start_at_once) {
    char path[3 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    pid_t children[4];
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    fflush(NULL);
    for (size_t i = 0; i < TC_COUNT(children); i++) {
        children[i] = fork();
        if (children[i] == 0) {
            int code = jit_once(jit_text, &jit_target, true, &image, &cached, &err);
            if (code) fprintf(stderr, "%s\n", err.message);
            _exit(code || image.len < 500);
        }
    }
    for (size_t i = 0; i < TC_COUNT(children); i++) {
        int status = -1;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
    CHECK(only_file(p.cache, path));
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);
    tc__buf_free(&image);
    place_close(&p);
}

/* ---- messages ---- */

/* Copies the kernel sources into the folder; line `broken` of the prelude becomes nonsense. */
static void copy_sources(const char *folder, int broken) {
    const char *name, *text;
    char path[2 * PROGRAM_PATH];
    for (int i = 0; (text = tc_kernel_source(i, &name)) != NULL; i++) {
        tc__buf copy = {0};
        int line = 1;
        for (; *text; text++) {
            if (i == 0 && line == broken) {
                tc__buf_str(&copy, "this is no code;\n");
                text = strchr(text, '\n');
            } else {
                tc__buf_add(&copy, text, 1);
            }
            line += *text == '\n';
        }
        snprintf(path, sizeof path, "%s/%s", folder, name);
        write_file(path, copy.data, copy.len);
        tc__buf_free(&copy);
    }
}

TEST(a_mistake_in_the_source_is_named) {
    char path[2 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    copy_sources(p.folder, 0);
    CHECK_MSG(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK, "%s",
              err.message);
    /* the files' text is part of the key, wherever it comes from */
    unsetenv("TINYCHAT_KERNELS");
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    copy_sources(p.folder, 12);
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "prelude.cuh(12): error"), "%s", err.message);
    CHECK_MSG(strstr(err.message, "sm_80"), "%s", err.message);
    CHECK_MSG(!strchr(err.message, '\n'), "more than one line: %s", err.message);
    /* the instances' own text has the program's name */
    unsetenv("TINYCHAT_KERNELS");
    CHECK(jit_once("\nnonsense;\n", &jit_target, true, &image, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "test.cu(2): error"), "%s", err.message);
    /* a file that is missing */
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    snprintf(path, sizeof path, "%s/rows.cuh", p.folder);
    CHECK(unlink(path) == 0);
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_ERR_IO);
    CHECK_MSG(strstr(err.message, "rows.cuh"), "%s", err.message);
    tc__buf_free(&image);
    place_close(&p);
}

TEST_MAIN(RUN(a_hit_needs_no_nvrtc) RUN(the_target_of_one_architecture_is_apart)
              RUN(kernels_can_be_carried_to_another_machine)
                  RUN(damaged_cache_files_are_compiled_anew)
                      RUN(a_cache_that_cannot_be_written_costs_only_time)
                          RUN(the_cache_is_where_it_is_expected) RUN(processes_may_start_at_once)
                              RUN(a_mistake_in_the_source_is_named))
