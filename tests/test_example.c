/* The README's program: compiled into this one and run on a small model. */
#include "program.h"
#include "test.h"
#include "tiny_model.h"

#define main example_main
#include "examples/minimal.c"
#undef main

static char folder[PROGRAM_PATH];

/* Runs the program with these arguments; what it prints goes to text, `len` bytes, of which a random
 * model may make some zero. Returns its exit status. */
static int run_example(char *model, char *question, char *text, size_t size, size_t *len) {
    char name[] = "minimal", *argv[] = {name, model, question, NULL}, path[PROGRAM_PATH + 8];
    snprintf(path, sizeof path, "%s/out", folder);
    fflush(stdout);
    int terminal = dup(1), file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (terminal < 0 || file < 0 || dup2(file, 1) < 0) return -1;
    int status = example_main(question ? 3 : 2, argv);
    fflush(stdout);
    dup2(terminal, 1);
    close(terminal);
    ssize_t got = pread(file, text, size - 1, 0);
    *len = got < 0 ? 0 : (size_t)got;
    text[*len] = 0;
    close(file);
    return status;
}

TEST(the_example_prints_a_reply) {
    char path[PROGRAM_PATH + 16], question[] = "hello world", text[8192];
    size_t len;
    snprintf(path, sizeof path, "%s/tiny.bin", folder);
    CHECK(run_example(path, question, text, sizeof text, &len) == TC_OK);
    CHECK_MSG(len > 1 && text[len - 1] == '\n', "printed '%s'", text);
    CHECK(run_example(path, NULL, text, sizeof text, &len) == TC_OK && len > 1);
}

TEST(the_example_reports_errors) {
    char path[PROGRAM_PATH + 16], text[2048];
    size_t len;
    snprintf(path, sizeof path, "%s/none.bin", folder);
    CHECK(run_example(path, NULL, text, sizeof text, &len) == TC_ERR_IO);
    CHECK_MSG(strstr(text, "none.bin: cannot open"), "printed '%s'", text);
}

/* The text of a file; false if it cannot be opened. */
static bool read_text(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    text[fread(text, 1, size - 1, file)] = 0;
    fclose(file);
    return true;
}

/* From the first #include on: the README may introduce the program in its own words. */
TEST(the_readme_shows_this_program) {
    static char readme[1 << 20], program[1 << 14];
    if (!read_text("README.md", readme, sizeof readme)) SKIP("there is no README.md here");
    REQUIRE(read_text("examples/minimal.c", program, sizeof program));
    const char *code = strstr(program, "#include");
    REQUIRE(code);
    CHECK_MSG(strstr(readme, code), "fix: copy examples/minimal.c into README.md");
}

static int prepare(void) {
    tiny_model options = tiny_model_default();
    char path[PROGRAM_PATH + 16];
    options.max_seq_len = 64; /* a short reply, */
    options.stop_ids[0] = -1; /* but never an empty one, whatever chance says */
    if (!program_folder(folder)) return -1;
    snprintf(path, sizeof path, "%s/tiny.bin", folder);
    return tiny_model_write(&options, path);
}

/* clang-format off */
TEST_MAIN(
    if (prepare()) return 1;
    RUN(the_example_prints_a_reply)
    RUN(the_example_reports_errors)
    RUN(the_readme_shows_this_program)
    program_remove_folder(folder);)
