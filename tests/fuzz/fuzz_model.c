/* Fuzzes the engine's reader of model files: with the checksums made right, whatever it opens has to
 * tokenize, evaluate, sample, and chat. */
#include "driver.h"

#include "src/model_file.h"

static void put_u32(tc__buf *file, size_t at, uint32_t value) {
    memcpy(file->data + at, &value, 4);
}
static void put_u64(tc__buf *file, size_t at, uint64_t value) {
    memcpy(file->data + at, &value, 8);
}

/* The header's fields by docs/format.md. */
static void make_checksums_right(tc__buf *file) {
    uint64_t metadata, table;
    if (file->len < TC__HEADER_SIZE) return;
    memcpy(&metadata, file->data + 32, 8);
    memcpy(&table, file->data + 56, 8);
    put_u64(file, 16, file->len);
    const uint8_t *at = (const uint8_t *)file->data + TC__HEADER_SIZE;
    const uint64_t room = file->len - TC__HEADER_SIZE;
    if (metadata <= room && table <= room - metadata) {
        put_u32(file, 44, tc__crc32(0, at, (size_t)metadata));
        put_u32(file, 52, tc__crc32(0, at + metadata, (size_t)table));
    }
    put_u32(file, 12, tc__crc32(0, (const uint8_t *)file->data + 16, TC__HEADER_SIZE - 16));
}

static void evaluate(tc_model *model) {
    static const int32_t ids[] = {0, 1, 2, 1, 0};
    tc_session_params params = tc_session_default_params();
    tc_session *session = NULL;
    tc_error err;
    params.ctx_size = 8;
    if (tc_session_open(model, &params, &session, &err)) return;
    if (!tc_eval(session, ids, 5, &err)) {
        int32_t id = -1;
        const int vocab = tc_model_get_info(model).vocab_size;
        if (!tc_sample(session, NULL, &id, &err) && (id < 0 || id >= vocab)) abort();
    }
    tc_session_close(session);
}

static void talk(tc_model *model) {
    static const char text[] = "Hello <s> \xE4\xBD\xA0 \xFF";
    tc_chat_params params = tc_chat_default_params();
    tc_chat *chat = NULL;
    tc_reply reply;
    tc_error err;
    int32_t ids[64];
    size_t n;
    tc_tokenize(model, text, sizeof text - 1, 0, ids, 64, &n, &err);
    params.ctx_size = 64;
    params.max_tokens = 2;
    if (tc_chat_open(model, &params, &chat, &err)) return;
    tc_chat_send(chat, text, sizeof text - 1, NULL, NULL, &reply, &err);
    tc_chat_close(chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[240];
    tc__buf file = {0};
    tc_model_params params = tc_model_default_params();
    tc_model *model = NULL;
    tc_error err;
    tc__buf_add(&file, data, size);
    if (file.failed) exit(2);
    make_checksums_right(&file);
    fuzz_write(fuzz_path(path, "model"), file.data, file.len);
    tc__buf_free(&file);
    params.device = "cpu";
    params.threads = 1;
    int code = tc_model_open(path, &params, &model, &err);
    unlink(path);
    if (code != err.code || (code && (!err.message[0] || model))) abort();
    if (code) return 0;
    if (tc_model_get_info(model).vocab_size >= 3) evaluate(model);
    talk(model);
    tc_model_close(model);
    return 0;
}
