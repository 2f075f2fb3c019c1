/* convert - the command line: arguments, messages, exit codes. */
#include "convert.h"
#include "inspect.h"
#include "src/template.h"

#include "chat_template.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { MAIN_OK = 0, MAIN_FAILURE = 1, MAIN_USAGE = 2, MAIN_BAD_CHECKPOINT = 3 };

static const char *main_name = "convert"; /* what the program was called as */

static const char *const main_usages[] = {
    "--hf DIR [--awq FILE.pt | --awq DIR] [-o model.bin]",
    "--hf DIR --awq-search FILE.pt | --quantize rtn [-o model.bin]", "--inspect FILE",
    "--verify model.bin"};

static const char main_help[] =
    "\n"
    "Turns a checkpoint of a LLaMA, Mistral, Qwen, MPT or Falcon model into one file for ./chat.\n"
    "\n"
    "  --hf DIR         Hugging Face folder: config.json, tokenizer; also the weights\n"
    "                   (safetensors or pytorch_model*.bin; fp16, bf16 or 4-bit) unless --awq\n"
    "  --awq FILE|DIR   weights: a 4-bit dump of llm-awq (.pt), or the folder that its\n"
    "                   split_ckpt.py makes of one\n"
    "  --awq-search F   quantise 16-bit weights with the search results of llm-awq (.pt)\n"
    "  --quantize rtn   quantise 16-bit weights by rounding to nearest\n"
    "  --group-size N   of these: 32, 64 or 128 (default: the search results', or what suits)\n"
    "  -o, --output F   the model file (default model.bin); replaced only after success\n"
    "  --template NAME  chat template, instead of the checkpoint's own: %s\n"
    "  --name NAME      the model's name, instead of the folder's\n"
    "  --no-tokenizer   convert without a tokenizer, for use with token ids only\n"
    "  -q, --quiet      print errors only\n"
    "  --inspect FILE   list what is in a checkpoint, a folder or a model file\n"
    "  --verify FILE    check every checksum of a model file\n"
    "  --help, --version\n"
    "\n"
    "Packing and group size are found out from the tensors. Exit codes: 0 success, 1 failure,\n"
    "2 wrong usage, 3 bad or unsupported checkpoint.\n";

typedef struct main_arguments {
    convert_options convert;
    const char *inspect, *verify, *quantize, *group_size;
    bool quiet, help, version;
} main_arguments;

static tc__flag main_interrupted;

static void main_on_signal(int signal_number) {
    (void)signal_number;
    tc__flag_set(&main_interrupted, true);
}

/* ---- messages ---- */

typedef struct main_screen {
    bool quiet, bar; /* bar: stderr is a terminal */
    int percent;     /* shown now; -1: no bar on the screen */
} main_screen;

static void main_clear(main_screen *screen) {
    if (screen->percent >= 0) fputs("\r\033[K", stderr);
    screen->percent = -1;
}

static void main_progress(void *user, double fraction) {
    main_screen *screen = user;
    int percent = (int)(100 * fraction);
    if (!screen->bar || percent == screen->percent) return;
    char bar[41];
    memset(bar, ' ', 40);
    memset(bar, '#', (size_t)(percent < 100 ? percent : 100) * 40 / 100);
    bar[40] = 0;
    screen->percent = percent;
    fprintf(stderr, "\r[%s] %3d %%", bar, percent);
    fflush(stderr);
}

static void main_note(void *user, const char *line) {
    main_screen *screen = user;
    if (screen->quiet) return;
    main_clear(screen);
    fprintf(stderr, "%s: note: %s\n", main_name, line);
}

static void main_found(void *user, const char *line) {
    main_screen *screen = user;
    if (!screen->quiet) printf("%s\n", line);
    fflush(stdout);
}

static int main_fail(const tc_error *err) {
    fprintf(stderr, "%s: %s\n", main_name, err->message);
    switch (err->code) {
    case TC_ERR_ARGUMENT: return MAIN_USAGE;
    case TC_ERR_FORMAT:
    case TC_ERR_UNSUPPORTED: return MAIN_BAD_CHECKPOINT;
    default: return MAIN_FAILURE;
    }
}

static int main_usage(const char *what, const char *argument) {
    fprintf(stderr, "%s: %s%s; see %s --help\n", main_name, what, argument, main_name);
    return MAIN_USAGE;
}

/* ---- arguments ---- */

/* The value of a flag that takes one: "--flag value" or "--flag=value". */
static bool main_value(int argc, char **argv, int *i, const char *flag, const char **value) {
    size_t len = strlen(flag);
    if (strncmp(argv[*i], flag, len) != 0) return false;
    if (argv[*i][len] == '=' && flag[1] == '-') {
        *value = argv[*i] + len + 1;
        return true;
    }
    if (argv[*i][len] != 0) return false;
    *value = *i + 1 < argc ? argv[++*i] : NULL;
    return true;
}

static int main_parse(int argc, char **argv, main_arguments *a) {
    const struct {
        const char *flag;
        const char **value;
    } values[] = {
        {"--hf", &a->convert.hf},
        {"--awq", &a->convert.awq},
        {"--awq-search", &a->convert.search},
        {"--quantize", &a->quantize},
        {"--group-size", &a->group_size},
        {"-o", &a->convert.output},
        {"--output", &a->convert.output},
        {"--template", &a->convert.template_name},
        {"--name", &a->convert.name},
        {"--inspect", &a->inspect},
        {"--verify", &a->verify},
    };
    const struct {
        const char *flag;
        bool *set;
    } switches[] = {
        {"--no-tokenizer", &a->convert.no_tokenizer},
        {"-q", &a->quiet},
        {"--quiet", &a->quiet},
        {"--help", &a->help},
        {"-h", &a->help},
        {"--version", &a->version},
    };
    for (int i = 1; i < argc; i++) {
        bool known = false;
        const char *argument = argv[i];
        for (size_t k = 0; k < TC_COUNT(values) && !known; k++) {
            known = main_value(argc, argv, &i, values[k].flag, values[k].value);
            if (known && !*values[k].value) return main_usage("no value after ", argument);
        }
        for (size_t k = 0; k < TC_COUNT(switches) && !known; k++)
            if (strcmp(argument, switches[k].flag) == 0) known = *switches[k].set = true;
        if (!known) return main_usage("unknown argument: ", argument);
    }
    return MAIN_OK;
}

/* --awq-search, --quantize and --group-size. */
static int main_check_quantise(main_arguments *a) {
    convert_options *o = &a->convert;
    if (a->quantize && strcmp(a->quantize, "rtn") != 0)
        return main_usage("--quantize: expected rtn, not ", a->quantize);
    o->quantise = a->quantize != NULL;
    if (o->search && o->quantise)
        return main_usage("--awq-search and --quantize exclude each other", "");
    if (a->group_size && !o->search && !o->quantise)
        return main_usage("--group-size belongs to --awq-search or --quantize", "");
    static const struct {
        const char *text;
        uint32_t size;
    } groups[] = {{"32", 32}, {"64", 64}, {"128", 128}};
    for (size_t i = 0; i < TC_COUNT(groups) && a->group_size; i++)
        if (strcmp(a->group_size, groups[i].text) == 0) o->group = groups[i].size;
    if (a->group_size && !o->group)
        return main_usage("--group-size: expected 32, 64 or 128, not ", a->group_size);
    return MAIN_OK;
}

static int main_check(main_arguments *a) {
    char names[CHAT_MAX_NAMES];
    const convert_options *o = &a->convert;
    if (a->inspect || a->verify) {
        if (o->hf || o->awq || o->output || o->search || o->template_name || o->name ||
            o->no_tokenizer || a->quantize || a->group_size || (a->inspect && a->verify))
            return main_usage("--inspect and --verify stand alone", "");
        return MAIN_OK;
    }
    if (!o->hf)
        return main_usage(o->awq ? "--awq needs --hf DIR as well (config.json and tokenizer)"
                                 : "nothing to do: --hf DIR is missing",
                          "");
    if (o->template_name && !tc__template_find(o->template_name)) {
        chat_names(names, sizeof names);
        fprintf(stderr, "%s: no chat template '%s'; expected one of: %s\n", main_name,
                o->template_name, names);
        return MAIN_USAGE;
    }
    if (o->name && !*o->name) return main_usage("--name: expected a text that is not empty", "");
    if (o->output && !*o->output)
        return main_usage("--output: expected the name of a file, not an empty text", "");
    return main_check_quantise(a);
}

/* ---- the work ---- */

static double main_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* What ends the program by default ends the conversion, so that no half file stays behind. A signal
 * that the parent process ignores (nohup, background jobs) stays ignored. */
static void main_catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action;
    for (size_t i = 0; i < TC_COUNT(numbers); i++) {
        if (sigaction(numbers[i], NULL, &action) || action.sa_handler == SIG_IGN) continue;
        memset(&action, 0, sizeof action);
        action.sa_handler = main_on_signal;
        sigaction(numbers[i], &action, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a file that grows beyond its limit (ulimit -f): a failed write */
}

static int main_convert(convert_options *o, main_screen *screen) {
    convert_summary summary;
    tc_error err;
    main_catch_signals();
    if (!o->output) o->output = "model.bin";
    o->cancel = &main_interrupted;
    o->note = main_note;
    o->found = main_found;
    o->progress = main_progress;
    o->user = screen;
    double start = main_seconds();
    int code = convert_run(o, &summary, &err);
    main_clear(screen);
    if (code) return main_fail(&err);
    double seconds = main_seconds() - start;
    if (!screen->quiet)
        printf("%s: %s, %zu tensors, %.1f MB from %.1f MB (%s), template %s, %.1f s (%.0f MB/s)\n",
               o->output, summary.precision, summary.tensors, (double)summary.output_bytes / 1e6,
               (double)summary.input_bytes / 1e6, summary.source, summary.template_name, seconds,
               (double)summary.input_bytes / 1e6 / (seconds > 1e-3 ? seconds : 1e-3));
    return MAIN_OK;
}

static void main_print_help(void) {
    char names[CHAT_MAX_NAMES];
    chat_names(names, sizeof names);
    for (size_t i = 0; i < TC_COUNT(main_usages); i++)
        printf("%s %s %s\n", i ? "      " : "usage:", main_name, main_usages[i]);
    printf(main_help, names);
}

/* What the arguments ask for; returns the exit code. */
static int main_run(main_arguments *a) {
    main_screen screen = {a->quiet, !a->quiet && isatty(STDERR_FILENO), -1};
    tc_error err;
    int code = TC_OK;
    if (a->help) {
        main_print_help();
    } else if (a->version) {
        printf("convert (tinychat %s)\n", TC_VERSION);
    } else if ((code = main_check(a)) != MAIN_OK) {
        return code;
    } else if (a->inspect) {
        code = inspect_file(a->inspect, stdout, &err);
    } else if (a->verify) {
        code = inspect_verify(a->verify, stdout, main_progress, &screen, &err);
        main_clear(&screen);
    } else {
        return main_convert(&a->convert, &screen);
    }
    return code ? main_fail(&err) : MAIN_OK;
}

int main(int argc, char **argv) {
    main_arguments a;
    memset(&a, 0, sizeof a);
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    if (argc > 0) main_name = slash ? slash + 1 : argv[0];
    int code = main_parse(argc, argv, &a);
    if (!code) code = main_run(&a);
    if (!code && (fflush(stdout) || ferror(stdout))) {
        fprintf(stderr, "%s: cannot write to standard output\n", main_name);
        return MAIN_FAILURE;
    }
    return code;
}
