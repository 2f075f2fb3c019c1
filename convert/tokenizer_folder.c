#include "tokenizer_folder.h"

#include "hf_config.h"
#include "src/vocabulary.h"
#include "tokenizer_json.h"
#include "tokenizer_spm.h"

/* ---- added tokens ---- */

/* A string, or the "content" of an AddedToken object. */
static void folder_content(const json_doc *doc, const json_value *value, tc__buf *text) {
    text->len = 0;
    if (json_type(value) == JSON_OBJECT) value = json_get(doc, value, "content");
    json_string(doc, value, text);
}

/* Remarks on what SentencePiece's path does not do. */
static void folder_strips(const json_doc *doc, const json_value *token, const tc__buf *text,
                          bool inside, tc__buf *notes) {
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    for (size_t i = 0; i < TC_COUNT(flags); i++) {
        bool set = false;
        if (json_bool(json_get(doc, token, flags[i]), &set) && set && inside)
            tc__buf_printf(notes,
                           "added token '%.80s' asks for %s, which is not implemented: text "
                           "beside it is taken as it is\n",
                           text->data ? text->data : "", flags[i]);
    }
}

/* added_tokens_decoder: {"32000": {"content": "<pad>", "lstrip": false, ...}} */
static int folder_decoder(const json_doc *doc, tokenizer_import *import, uint32_t vocab_size,
                          tc__buf *notes, tc_error *err) {
    const json_value *tokens = json_get(doc, json_root(doc), "added_tokens_decoder");
    tc__buf text = {0}, key = {0};
    int code = TC_OK;
    for (const json_value *item = json_first(tokens); item && !code;
         item = json_next(tokens, item)) {
        const json_value *token = json_member(item);
        if (json_type(tokens) != JSON_OBJECT || json_type(token) != JSON_OBJECT) break;
        key.len = 0;
        json_string(doc, item, &key);
        folder_content(doc, token, &text);
        int64_t id = key.len ? strtol(key.data, NULL, 10) : -1;
        bool flagged = import->has_merges && text.len;
        uint8_t flags = flagged ? tokenizer_json_flags(doc, token, &text) : 0;
        if (!import->bytes) flags &= (uint8_t)~TC__ADDED_NORMALIZED;
        code = tokenizer_import_add(import, vocab_size, id, &text, flags, notes, err);
        if (!import->has_merges) folder_strips(doc, token, &text, id < vocab_size, notes);
    }
    tc__buf_free(&text);
    tc__buf_free(&key);
    return code;
}

/* added_tokens.json: {"<pad>": 32000} */
static int folder_added_file(const char *dir, tokenizer_import *import, uint32_t vocab_size,
                             tc__buf *notes, tc_error *err) {
    char *path = hf_path(dir, "added_tokens.json");
    if (!path) return TC_OK;
    json_doc doc;
    tc__buf text = {0};
    int code = json_open(path, &doc, err);
    const json_value *root = code ? NULL : json_root(&doc);
    for (const json_value *item = json_first(root); item && !code; item = json_next(root, item)) {
        int64_t id = -1;
        text.len = 0;
        json_string(&doc, item, &text);
        if (json_type(root) != JSON_OBJECT || !json_int(&doc, json_member(item), &id))
            code = tc__fail(err, TC_ERR_FORMAT, "%s: expected an object of token ids", path);
        else
            code = tokenizer_import_add(import, vocab_size, id, &text, 0, notes, err);
    }
    tc__buf_free(&text);
    json_close(&doc);
    free(path);
    return code;
}

/* ---- tokenizer_config.json ---- */

/* bos_token and eos_token: as text, which is looked up; null or absent leaves the model's own. They
 * are special whether or not a tokenizer.json says so. */
static int folder_named(const json_doc *doc, const char *path, const char *key,
                        tokenizer_import *import, int64_t *id, tc_error *err) {
    tc__buf text = {0};
    folder_content(doc, json_get(doc, json_root(doc), key), &text);
    int64_t found = text.len ? tokenizer_import_lookup(import, &text) : *id;
    int code = TC_OK;
    if (found < 0 && text.len)
        code = tc__fail(err, TC_ERR_FORMAT, "%s: '%s' is '%.80s', which is no token", path, key,
                        text.data);
    else if (text.len && import->has_merges && !tokenizer_import_is_added(import, &text))
        code = tokenizer_import_add(import, UINT32_MAX, found, &text, 0, NULL, err);
    *id = found;
    tc__buf_free(&text);
    return code;
}

/* Whether the configuration's add_bos_token counts for a tokenizer.json, and its default: the
 * classes made for one family put the BOS there themselves, whatever the file says. */
static void folder_bos_class(const json_doc *doc, tokenizer_import *import) {
    const json_value *root = json_root(doc), *name = json_get(doc, root, "tokenizer_class");
    static const char *const llama[] = {"LlamaTokenizer", "LlamaTokenizerFast",
                                        "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"};
    if (json_is(doc, name, "PreTrainedTokenizerFast")) return;
    for (size_t i = 0; i < TC_COUNT(llama); i++)
        if (json_is(doc, name, llama[i])) import->add_bos = true;
    json_bool(json_get(doc, root, "add_bos_token"), &import->add_bos);
}

static void folder_class(const json_doc *doc, const char *path, tc__buf *notes) {
    static const char *const known[] = {"LlamaTokenizer",          "LlamaTokenizerFast",
                                        "PreTrainedTokenizerFast", "LLaMATokenizer",
                                        "CodeLlamaTokenizer",      "TokenizersBackend"};
    const json_value *value = json_get(doc, json_root(doc), "tokenizer_class");
    tc__buf name = {0};
    if (!json_string(doc, value, &name)) return;
    for (size_t i = 0; i < TC_COUNT(known); i++)
        if (json_is(doc, value, known[i])) name.len = 0;
    if (name.len)
        tc__buf_printf(notes, "%s: tokenizer_class '%.80s' is treated as LlamaTokenizer\n", path,
                       name.data);
    tc__buf_free(&name);
}

static int folder_config(const json_doc *doc, const char *path, tokenizer_import *import,
                         uint32_t vocab_size, tc__buf *notes, tc_error *err) {
    const json_value *root = json_root(doc);
    if (json_type(root) != JSON_OBJECT)
        return tc__fail(err, TC_ERR_FORMAT, "%s: not a JSON object", path);
    bool prefix = true, add_eos = false;
    json_bool(json_get(doc, root, "add_prefix_space"), &prefix);
    json_bool(json_get(doc, root, "add_eos_token"), &add_eos);
    if (import->has_merges) {
        folder_bos_class(doc, import);
    } else {
        json_bool(json_get(doc, root, "add_bos_token"), &import->add_bos);
        json_bool(json_get(doc, root, "legacy"), &import->legacy);
        import->dummy_prefix = import->legacy ? import->spm_prefix : prefix;
        folder_class(doc, path, notes);
    }
    if (add_eos)
        tc__buf_printf(notes, "%s: add_eos_token is ignored: a chat template places it\n", path);
    int code = folder_decoder(doc, import, vocab_size, notes, err);
    if (!code) code = folder_named(doc, path, "bos_token", import, &import->bos_id, err);
    if (!code) code = folder_named(doc, path, "eos_token", import, &import->eos_id, err);
    return code;
}

static int folder_read_config(const char *dir, tokenizer_import *import, uint32_t vocab_size,
                              tc__buf *notes, tc_error *err) {
    if (!import->has_merges) {
        import->add_bos = import->legacy = true;
        import->dummy_prefix = import->spm_prefix;
    }
    int code = folder_added_file(dir, import, vocab_size, notes, err);
    char *path = code ? NULL : hf_path(dir, "tokenizer_config.json");
    if (code) return code;
    if (!path) {
        tc__buf_printf(notes, "%s: no tokenizer_config.json; %s used\n", dir,
                       import->has_merges ? "tokenizer.json alone is"
                                          : "LlamaTokenizer's defaults are");
        return TC_OK;
    }
    json_doc doc;
    code = json_open(path, &doc, err);
    if (!code) code = folder_config(&doc, path, import, vocab_size, notes, err);
    json_close(&doc);
    free(path);
    return code;
}

/* ---- the whole ---- */

static int folder_missing(const char *dir, tc_error *err) {
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: neither tokenizer.model nor tokenizer.json in this folder; add the "
                    "model's, or convert with --no-tokenizer for use with token ids",
                    dir);
}

/* Whether the engine will take it: better said now than when the model file is opened. */
static int folder_try(const char *path, const tokenizer_import *import, uint32_t vocab_size,
                      tc_error *err) {
    tc__tokenizer *tokenizer;
    tc_error why;
    int code = tokenizer_import_open(import, vocab_size, &tokenizer, &why);
    tc__tokenizer_close(tokenizer);
    return code ? tc__fail(err, code, "%s: %s", path, why.message) : TC_OK;
}

/* The list of ids that tiktoken writes under the same name, beside a tokenizer.json. */
static bool folder_is_tiktoken(const char *path) {
    tc__map map;
    if (tc__map_open(path, &map, NULL)) return false;
    bool found = map.size > 5 && !memcmp(map.data, "IQ== ", 5);
    tc__map_close(&map);
    return found;
}

int tokenizer_folder_read(const char *dir, uint32_t vocab_size, tokenizer_import *import,
                          tc__buf *notes, tc_error *err) {
    memset(import, 0, sizeof *import);
    char *model = hf_path(dir, "tokenizer.model"), *json = hf_path(dir, "tokenizer.json");
    bool use_json = json && (!model || folder_is_tiktoken(model));
    const char *path = use_json ? json : model;
    int code = !path      ? folder_missing(dir, err)
               : use_json ? tokenizer_json_read(path, vocab_size, import, notes, err)
                          : tokenizer_spm_read(path, vocab_size, import, err);
    if (!code) code = folder_read_config(dir, import, vocab_size, notes, err);
    if (!code && import->add_bos && import->bos_id < 0)
        code = tc__fail(err, TC_ERR_FORMAT, "%s: add_bos_token, but there is no BOS token", path);
    if (!code && (import->added.failed || import->added_ids.failed || import->added_flags.failed ||
                  import->unk_surface.failed))
        code = tc__fail_memory(err, "the added tokens", import->added.len);
    if (!code) code = folder_try(path, import, vocab_size, err);
    free(model);
    free(json);
    if (code) tokenizer_import_free(import);
    return code;
}
