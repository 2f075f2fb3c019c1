#include "chat_template.h"

#include "hf_config.h"
#include "json.h"

#include <ctype.h>

/* The system text that transformers' LlamaTokenizer put in when use_default_system_prompt was set
 * (tokenization_llama.py, DEFAULT_SYSTEM_PROMPT): Meta's, to the byte. */
#define CHAT_LLAMA_SYSTEM                                                                          \
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, " \
    "while being safe. Your answers should not include any harmful, unethical, racist, sexist, "   \
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially "        \
    "unbiased and positive in nature.\n\nIf a question does not make any sense, or is not "        \
    "factually coherent, explain why instead of answering something not correct. If you don't "    \
    "know the answer to a question, please don't share false information."

/* Known chat_template texts. `system` NULL: the built-in template's own. */
static const struct {
    uint32_t fingerprint;
    const char *name, *system;
} chat_known[] = {
    /* meta-llama/Llama-2-{7,13,70}b-chat-hf, tokenizer_config.json (as quoted in public copies) */
    {0x7baffc85, "llama-2", ""},
    /* transformers 4.34 to 4.37, LlamaTokenizer.default_chat_template, default prompt on and off */
    {0x086f69f3, "llama-2", CHAT_LLAMA_SYSTEM},
    {0x49e5fb71, "llama-2", ""},
    /* a later form of the same, with a case for a conversation that is only a system text */
    {0xf0ab3cc2, "llama-2", CHAT_LLAMA_SYSTEM},
    {0x56d69853, "llama-2", ""},
    /* the project's demo model, CHAT_TEMPLATE of models/train.py: renders as Llama-2-chat's */
    {0xc5c544ae, "llama-2", ""},
    /* unsloth, chat_templates.py, "vicuna": what it saves with a fine-tuned model */
    {0x3dff18cc, "vicuna", NULL},
    /* FastChat's format as one line of Jinja, without a default system text (several projects set
     * it for lmsys/vicuna, whose own folder has no template) */
    {0xcb9d87d4, "vicuna", ""},
    /* tokenizer_config.json of the folders named, as quoted in public copies; two fingerprints
     * where line breaks are written in two ways */
    {0x02fb31a8, "llama-3", NULL}, /* Meta-Llama-3-8B-Instruct, first and later form */
    {0xdb3b6d66, "llama-3", NULL},
    {0x5cc1ce4c, "llama-3", NULL},
    {0xf7d89356, "llama-3", NULL},
    {0x331b96bc, "llama-3.1", NULL}, /* Llama-3.1-8B-Instruct */
    {0xfbfa32e1, "llama-3.1", NULL}, /* Llama-3.2-3B-Instruct: asks for today's date if it can */
    {0xc77de5b0, "mistral-v0.1", NULL},
    {0xf5755655, "mistral-v0.2", NULL}, /* the form without a system text */
    {0xc010a1c3, "mistral-v0.3", NULL},
    {0x08a50361, "qwen2", NULL}, /* Qwen2-7B-Instruct */
    {0xc54ee577, "qwen2", NULL},
    {0x33704f27, "qwen2.5", NULL}, /* Qwen2.5-7B-Instruct */
    {0xc750b161, "qwen3", NULL},   /* Qwen3-*, three forms over time */
    {0xc2f0cf43, "qwen3", NULL},
    {0x2ff5c669, "qwen3", NULL},
    {0x5ab0554e, "deepseek-r1", NULL}, /* DeepSeek-R1-Distill-*, before it began the thought */
    {0xc6ba82c9, "deepseek-r1", NULL}, /* and since */
    {0x0b22c63d, "zephyr", NULL},      /* zephyr-7b-beta, TinyLlama-1.1B-Chat-v1.0 */
    {0x3b3b2ef9, "zephyr", NULL},
    {0xfecc448d, "mpt-chat-hf", NULL}, /* mpt-7b-chat, mpt-30b-chat */
    {0x9ec5bee1, "mpt-chat-hf", NULL},
    {0x4d61fb69, "mpt-chat-hf", NULL},
    {0xe1517b13, "mpt-chat-hf", NULL},
    {0xbee181f9, "falcon", NULL}, /* falcon-7b-instruct */
    {0x91df8724, "falcon", NULL},
    {0xad7e910b, "chatml", NULL}, /* many folders' ChatML, without and with a default for
                                     add_generation_prompt */
    {0xd29c6fb3, "chatml", NULL},
    {0x9106ec97, "chatml", NULL},
    {0xe2dad0ae, "chatml", NULL},
};

/* What a text that is not known to the byte may be recognised by: all of the marks, the first row
 * that has them. */
static const struct {
    const char *name, *marks[3];
} chat_marks[] = {
    {"llama-3.1", {"<|start_header_id|>", "Cutting Knowledge Date", NULL}},
    {"llama-3", {"<|start_header_id|>", "<|eot_id|>", NULL}},
    {"deepseek-r1", {"<\xEF\xBD\x9CUser\xEF\xBD\x9C>", "</think>", NULL}},
    {"qwen3", {"<|im_start|>", "</think>", "enable_thinking"}},
    {NULL, {"<|im_start|>", "think>", NULL}}, /* another thinker */
    {"qwen2.5", {"<|im_start|>", "You are Qwen, created by Alibaba Cloud.", NULL}},
    {"mpt-chat-hf", {"<|im_start|>", "LLM-based AI assistant", NULL}},
    {"qwen2", {"<|im_start|>", "You are a helpful assistant.", NULL}},
    {"chatml", {"<|im_start|>", "<|im_end|>", NULL}},
    {"llama-2", {"[INST]", "<<SYS>>", NULL}},
    {"mistral-v0.3", {"[INST] ", "[AVAILABLE_TOOLS] [", NULL}},
    {"mistral-v0.2-spaced", {"\" [INST] \"", "system_message", NULL}},
    {"zephyr", {"<|user|>", "<|assistant|>", "eos_token"}},
};

uint32_t chat_fingerprint(const char *text, size_t len) {
    uint32_t crc = 0;
    bool space = false, begun = false;
    for (size_t i = 0; i < len; i++) {
        if (memchr(" \t\r\n\v\f", text[i], 6)) {
            space = true;
            continue;
        }
        if (space && begun) crc = tc__crc32(crc, " ", 1);
        crc = tc__crc32(crc, &text[i], 1);
        space = false;
        begun = true;
    }
    return crc;
}

void chat_names(char *text, size_t size) {
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; tc__template_at(i) && at < size; i++) {
        int len = snprintf(text + at, size - at, "%s%s", i ? ", " : "", tc__template_at(i)->name);
        at += len > 0 ? (size_t)len : 0;
    }
}

/* ---- the checkpoint's template ---- */

/* chat_template may be a text, or a list of {"name", "template"}: the one named "default". */
static void chat_from_json(const json_doc *doc, tc__buf *text) {
    const json_value *value = json_get(doc, json_root(doc), "chat_template");
    if (json_type(value) == JSON_ARRAY) {
        const json_value *list = value;
        value = NULL;
        for (const json_value *item = json_first(list); item; item = json_next(list, item))
            if (json_is(doc, json_get(doc, item, "name"), "default"))
                value = json_get(doc, item, "template");
    }
    json_string(doc, value, text);
}

static int chat_read_json(const char *dir, const char *name, tc__buf *text, tc_error *err) {
    char *path = hf_path(dir, name);
    if (!path) return TC_OK;
    json_doc doc;
    int code = json_open(path, &doc, err);
    if (!code) chat_from_json(&doc, text);
    json_close(&doc);
    free(path);
    return code;
}

static int chat_read_file(const char *dir, tc__buf *text, tc_error *err) {
    char *path = hf_path(dir, "chat_template.jinja");
    if (!path) return TC_OK;
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (!code) {
        tc__buf_add(text, map.data, map.size);
        tc__map_close(&map);
    }
    free(path);
    return code;
}

/* In the order in which transformers looks. text->len stays 0 if there is none. */
static int chat_read(const char *dir, tc__buf *text, tc_error *err) {
    int code = chat_read_file(dir, text, err);
    if (!code && !text->len) code = chat_read_json(dir, "chat_template.json", text, err);
    if (!code && !text->len) code = chat_read_json(dir, "tokenizer_config.json", text, err);
    if (!code && text->failed) code = tc__fail_memory(err, "a chat template", text->len);
    return code;
}

/* By its fingerprint, which is the whole of it. */
static bool chat_recognise(const tc__buf *text, chat_choice *choice) {
    uint32_t fingerprint = chat_fingerprint(text->data, text->len);
    for (size_t i = 0; i < TC_COUNT(chat_known); i++)
        if (chat_known[i].fingerprint == fingerprint) {
            choice->chosen = tc__template_find(chat_known[i].name);
            choice->system = chat_known[i].system;
            choice->reason = "the checkpoint's chat_template";
            return choice->chosen != NULL;
        }
    return false;
}

/* By its marks, which is said aloud. */
static void chat_resemble(const tc__buf *text, chat_choice *choice, tc__buf *notes) {
    unsigned fingerprint = chat_fingerprint(text->data, text->len);
    size_t row = 0;
    for (; row < TC_COUNT(chat_marks); row++) {
        size_t found = 0;
        while (found < 3 && chat_marks[row].marks[found] &&
               strstr(text->data, chat_marks[row].marks[found]))
            found++;
        if (found == 3 || !chat_marks[row].marks[found]) break;
    }
    const char *name = row < TC_COUNT(chat_marks) ? chat_marks[row].name : NULL;
    if (!name) {
        tc__buf_printf(notes, "the checkpoint's chat_template (fingerprint %08x) is not known\n",
                       fingerprint);
        return;
    }
    choice->chosen = tc__template_find(name);
    choice->reason = "the marks in the checkpoint's chat_template";
    tc__buf_printf(notes,
                   "the checkpoint's chat_template (fingerprint %08x) is not known to the byte, "
                   "but it has the marks of '%s'; --template NAME chooses another\n",
                   fingerprint, name);
}

/* ---- the model's name ---- */

/* Whether `name` contains `word`, whatever the case. */
static bool chat_has(const char *name, const char *word) {
    size_t len = strlen(word);
    for (; *name; name++) {
        size_t i = 0;
        while (i < len && tolower((unsigned char)name[i]) == word[i]) i++;
        if (i == len) return true;
    }
    return false;
}

/* Whether `name` contains all the words of a NULL-terminated list. */
static bool chat_has_all(const char *name, const char *const *words) {
    while (*words && chat_has(name, *words)) words++;
    return !*words;
}

static const char *chat_by_name(const char *name) {
    /* words as they are without '-', '_' and ' '; the first row that fits */
    static const struct {
        const char *words[3], *chosen;
    } rows[] = {
        {{"vicuna"}, "vicuna"},
        {{"r1distill"}, "deepseek-r1"},
        {{"codellama", "instruct"}, "llama-2"},
        {{"tinyllama", "chat"}, "zephyr"},
        {{"zephyr"}, "zephyr"},
        {{"llama2", "chat"}, "llama-2"},
        {{"llama3.", "instruct"}, "llama-3.1"},
        {{"llama3", "instruct"}, "llama-3"},
        {{"mistral", "instruct", "v0.1"}, "mistral-v0.1"},
        {{"mistral", "instruct", "v0.2"}, "mistral-v0.2"},
        {{"mistral", "instruct", "v0.3"}, "mistral-v0.3"},
        {{"mpt", "chat"}, "mpt-chat"},
        {{"falcon", "instruct"}, "falcon"},
        {{"qwen3", "base"}, NULL},
        {{"qwen3", "instruct"}, "chatml"}, /* the ones that do not think */
        {{"qwen3"}, "qwen3"},
        {{"qwen2.5", "instruct"}, "qwen2.5"},
        {{"qwen2", "instruct"}, "qwen2"},
    };
    char plain[256];
    size_t n = 0;
    for (; *name && n + 1 < sizeof plain; name++)
        if (!strchr("-_ ", *name)) plain[n++] = *name;
    plain[n] = 0;
    for (size_t i = 0; i < TC_COUNT(rows); i++) {
        const char *words[] = {rows[i].words[0], rows[i].words[1], rows[i].words[2], NULL};
        if (chat_has_all(plain, words)) return rows[i].chosen;
    }
    return NULL;
}

int chat_choose(const char *dir, const char *asked, const char *const *names, chat_choice *choice,
                tc__buf *notes, tc_error *err) {
    memset(choice, 0, sizeof *choice);
    tc__buf text = {0};
    int code = asked ? TC_OK : chat_read(dir, &text, err);
    if (!code && asked) {
        choice->chosen = tc__template_find(asked);
        choice->reason = "asked for";
    } else if (!code && text.len) {
        if (!chat_recognise(&text, choice)) chat_resemble(&text, choice, notes);
    }
    tc__buf_free(&text);
    if (code) return code;
    for (; !choice->chosen && *names; names++) {
        const char *found = chat_by_name(*names);
        if (!found) continue;
        choice->chosen = tc__template_find(found);
        choice->reason = "by the model's name";
        tc__buf_printf(notes, "chat template '%s' is chosen by the name '%.200s'\n", found, *names);
    }
    if (!choice->chosen) {
        char list[CHAT_MAX_NAMES];
        chat_names(list, sizeof list);
        choice->chosen = tc__template_find("plain");
        choice->reason = "nothing known";
        tc__buf_printf(
            notes,
            "no chat template is known for this model: plain completion; --template NAME "
            "chooses one of: %s\n",
            list);
    }
    if (!choice->system) choice->system = choice->chosen->system;
    return TC_OK;
}

int64_t chat_closing_id(const chat_choice *choice, const tokenizer_import *tokenizer,
                        uint32_t vocab_size) {
    tc__tokenizer *opened;
    int32_t id = -1;
    if (tokenizer_import_open(tokenizer, vocab_size, &opened, NULL)) return -1;
    bool found = tc__template_closing(choice->chosen, opened, &id);
    tc__tokenizer_close(opened);
    return found ? id : -1;
}

void chat_write(const chat_choice *choice, const uint32_t *stop_ids, size_t stop_count, writer *w) {
    const tc__template *t = choice->chosen;
    const struct {
        const char *key, *text;
    } parts[] = {
        {"chat.template", t->name},
        {"chat.first", t->first},
        {"chat.first_system", t->first_system},
        {"chat.next", t->next},
        {"chat.reply", t->reply},
        {"chat.system", choice->system},
        {"chat.start", t->start},
        {"chat.next_system", t->next_system},
    };
    for (size_t i = 0; i < TC_COUNT(parts); i++)
        if (parts[i].text) writer_text(w, parts[i].key, parts[i].text, strlen(parts[i].text));
    if (stop_count) writer_u32(w, "chat.stop_ids", stop_ids, stop_count);
    tc__buf strings = {0};
    size_t count = 0;
    for (; t->stop_strings[count]; count++)
        writer_add_string(&strings, t->stop_strings[count], strlen(t->stop_strings[count]));
    if (count) writer_strings(w, "chat.stop_strings", &strings, count);
    tc__buf_free(&strings);
}
