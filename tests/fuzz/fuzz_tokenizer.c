/* Fuzzes tokenizer.json and what becomes of it: what convert takes for a tokenizer and the engine
 * opens has to encode and decode any text. */
#include "driver.h"

#include "convert/tokenizer_json.h"

static void use(const tc__tokenizer *tokenizer, const char *text, size_t len, bool trusted) {
    tc__ids ids = {0};
    tc__buf back = {0};
    tc__span spans[2] = {{text, len / 2, trusted}, {text + len / 2, len - len / 2, false}};
    if (tc__encode(tokenizer, spans, 2, TC__AT_START, &ids, NULL)) abort();
    if (tc__decode(tokenizer, ids.data, ids.len, &back, NULL)) abort();
    tc__buf_free(&back);
    tc__ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        "don't  <|im_end|>\r\n 12345 \xE6\x88\x91\xE4\xBB\xAC e\xCC\x81 \xFF garden";
    tokenizer_import import;
    tc__tokenizer *tokenizer = NULL;
    tc__buf notes = {0};
    tc_error err;
    memset(&import, 0, sizeof import);
    int code = tokenizer_json_parse("fuzz", (const char *)data, size, 5000, &import, &notes, &err);
    if (code && code != err.code) abort();
    if (!code) {
        code = tokenizer_import_open(&import, 5000, &tokenizer, &err);
        if (!code) {
            use(tokenizer, text, sizeof text - 1, true);
            use(tokenizer, (const char *)data, size, true);
        }
        tc__tokenizer_close(tokenizer);
    }
    tokenizer_import_free(&import);
    tc__buf_free(&notes);
    return 0;
}
