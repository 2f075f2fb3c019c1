#include "gpu_programs.h"

#include <math.h>

static const char *const programs_roles[TC__ROLES] = {"qkv", "o", "gate_up", "down"};
static const char *const programs_to[TC__ROLES] = {"TO_VECTORS", "TO_RESIDUAL", "TO_OPERAND",
                                                   "TO_RESIDUAL"};

const char *tc__role_name(int role) {
    return programs_roles[role];
}

const tc__tensor *tc__role_matrix(const tc__layer *layer, int role) {
    const tc__tensor *matrices[TC__ROLES] = {layer->qkv, layer->o, layer->gate_up, layer->down};
    return matrices[role];
}

/* bfloat16 becomes binary16 on the way to the GPU: one kind. */
static uint32_t programs_type(const tc__tensor *matrix) {
    return matrix->type == TC__BF16 ? TC__F16 : matrix->type;
}

int tc__kind_of(const tc__kinds *kinds, int role, const tc__tensor *matrix) {
    for (int i = 0; i < kinds->count[role]; i++)
        if (kinds->kind[role][i].type == programs_type(matrix) &&
            kinds->kind[role][i].group_size == matrix->group_size)
            return i;
    return -1;
}

static int programs_check(const tc__tensor *matrix, tc_error *err) {
    if (matrix->columns % 32 == 0) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "tensor '%.*s' has %zu columns; the GPU engine needs a multiple of 32; use "
                    "--device cpu",
                    (int)matrix->name_len, matrix->name, matrix->columns);
}

static int programs_add(tc__kinds *kinds, int role, const tc__tensor *matrix, tc_error *err) {
    int code = programs_check(matrix, err), n = kinds->count[role];
    if (code || tc__kind_of(kinds, role, matrix) >= 0) return code;
    if (n == TC__MAX_KINDS)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "the model mixes more than %d kinds of %s matrices", TC__MAX_KINDS,
                        programs_roles[role]);
    kinds->kind[role][n].type = programs_type(matrix);
    kinds->kind[role][n].group_size = matrix->group_size;
    kinds->count[role]++;
    return TC_OK;
}

int tc__kinds_find(const tc__weights *weights, tc__kinds *kinds, tc_error *err) {
    memset(kinds, 0, sizeof *kinds);
    uint32_t head_dim = weights->arch.head_dim;
    if (head_dim % 16 || head_dim > 256)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "head_dim is %u; the GPU engine needs a multiple of 16 up to 256; use "
                        "--device cpu",
                        (unsigned)head_dim);
    int code = programs_check(weights->head, err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++)
        for (int role = 0; role < TC__ROLES && !code; role++)
            code = programs_add(kinds, role, tc__role_matrix(&weights->layers[l], role), err);
    return code;
}

/* ---- source ---- */

/* The constants every program of this model begins with. */
/* Whether attention runs in an SM beside the products of both sides: behind qkv in a parallel block,
 * with heads so small that it needs few registers. */
static bool programs_beside(const tc__arch *arch) {
    return arch->parallel && arch->head_dim <= 64;
}

static void programs_constants(const tc__weights *weights, int sm_count, tc__buf *text) {
    const tc__arch *arch = &weights->arch;
    tc__buf_printf(text,
                   "#define SM_COUNT %d\n#define HIDDEN %u\n#define INTERMEDIATE %u\n"
                   "#define HEADS %u\n#define KV_HEADS %u\n#define HEAD_DIM %u\n#define VOCAB %u\n",
                   sm_count, (unsigned)arch->hidden_size, (unsigned)arch->intermediate_size,
                   (unsigned)arch->heads, (unsigned)arch->kv_heads, (unsigned)arch->head_dim,
                   (unsigned)arch->vocab_size);
    tc__buf_printf(text, "#define ALIBI %d\n#define QK_NORM %d\n#define ROPE_SCALE %.9ef\n",
                   arch->position == TC__POSITION_ALIBI, weights->layers[0].q_norm != NULL,
                   (double)arch->rope_scale);
    tc__buf_printf(text, "#define ATTENTION_BESIDE %d\n", programs_beside(arch));
    tc__buf_printf(text, "#define NORM %s\n#define NORM_EPS %.9ef\n",
                   arch->norm == TC__NORM_LAYER ? "NORM_LAYER" : "NORM_RMS",
                   (double)arch->norm_eps);
    tc__buf_printf(text, "#define ACTIVATION %s\n#define GATED %d\n#define CLIP_QKV %.9ef\n",
                   arch->activation == TC__ACT_GELU ? "ACT_GELU" : "ACT_SILU", arch->gated,
                   (double)arch->clip_qkv);
    tc__buf_str(text, "#include \"instances.cuh\"\n");
}

/* The columns in a unit of a kind's matrix: the group, or of binary16 64, or 32 where 64 does not
 * divide. */
static unsigned programs_unit(const tc__weights *weights, const tc__kinds *kinds, int role, int i) {
    size_t columns = tc__role_matrix(&weights->layers[0], role)->columns;
    if (kinds->kind[role][i].type == TC__W4) return (unsigned)kinds->kind[role][i].group_size;
    return columns % 64 ? 32 : 64;
}

static const char *programs_type_name(const tc__kinds *kinds, int role, int i) {
    return kinds->kind[role][i].type == TC__W4 ? "W4" : "F16";
}

/* "typedef W4<4096, 128> qkv_0_matrix; DECODE_PRODUCT(qkv_0, qkv_0_matrix, 12288, 1, 0, IN_RMS,
 * OUT_QKV, NO_PAIR)" and the like, and for several vectors the same with EachPick and EACH_PRODUCT.
 * Products of a layer come from the SIDEs of instances.cuh in turn. In a parallel block qkv and up
 * both need x alone, and down can begin when o can. */
static void programs_decode(const tc__weights *weights, const tc__kinds *kinds, int role, int i,
                            tc__buf *text) {
    const tc__arch *arch = &weights->arch;
    const tc__tensor *matrix = tc__role_matrix(&weights->layers[0], role);
    const char *norm = arch->norm == TC__NORM_LAYER ? "IN_LAYER" : "IN_RMS";
    const char *up = arch->gated ? "OUT_GATED" : "OUT_ACT";
    const char *first = arch->parallel ? "PAIR_FIRST" : "NO_PAIR";
    const char *second = arch->parallel ? "PAIR_SECOND" : "NO_PAIR";
    const struct {
        const char *in, *out, *pair;
        int side;
    } how[TC__ROLES] = {{norm, "OUT_QKV", first, programs_beside(arch) ? 2 : 0},
                        {"IN_PLAIN", "OUT_ADD", first, arch->parallel ? 0 : 1},
                        {norm, up, second, arch->parallel ? 1 : 0},
                        {"IN_PLAIN", "OUT_ADD", second, 1}};
    const char *name = programs_roles[role];
    const int limbs = role == TC__QKV ? 2 : 1; /* scores of attention are sensitive */
    if (kinds->kind[role][i].type == TC__W4)
        tc__buf_printf(text, "typedef W4<%zu, %u> %s_%d_matrix;\n", matrix->columns,
                       (unsigned)kinds->kind[role][i].group_size, name, i);
    else
        tc__buf_printf(text, "typedef F16<%zu> %s_%d_matrix;\n", matrix->columns, name, i);
    tc__buf_printf(text, "DECODE_PRODUCT(%s_%d, %s_%d_matrix, %zu, 1, %d, %s, %s, %s)\n", name, i,
                   name, i, matrix->rows, how[role].side, how[role].in, how[role].out,
                   how[role].pair);
    if (kinds->kind[role][i].type == TC__W4)
        tc__buf_printf(text, "typedef EachPick<W4Short<%zu, %u, %d>, ", matrix->columns,
                       (unsigned)kinds->kind[role][i].group_size, limbs);
    else
        tc__buf_printf(text, "typedef EachPick<F16Short<%zu, %d>, ", matrix->columns, limbs);
    tc__buf_printf(text, "%s_%d_matrix, %zu, %s> few_%s_%d_each;\n", name, i, matrix->rows,
                   how[role].in, name, i);
    tc__buf_printf(text,
                   "EACH_PRODUCT(few_%s_%d, few_%s_%d_each, %zu, %d, %s, %s, %s)\n", name, i, name,
                   i, matrix->rows, how[role].side, how[role].in, how[role].out, how[role].pair);
}

/* The head for one token and for each of several; in 8 bits, also the kernel that makes it. */
static void programs_head(const tc__weights *weights, const char *norm, tc__buf *text) {
    const size_t rows = weights->head->rows, columns = weights->head->columns;
    const size_t group = tc__head_8_group(weights);
    if (weights->head_in_8)
        tc__buf_printf(text,
                       "QUANTISE_KERNEL(quantise_head, %zu, %zu)\n"
                       "typedef W8<%zu, %zu> head_matrix;\n"
                       "typedef EachPick<W8Short<%zu, %zu, 2>, ",
                       columns, group, columns, group, columns, group);
    else
        tc__buf_printf(text,
                       "typedef F16<%zu> head_matrix;\ntypedef EachPick<F16Short<%zu, 2>, ",
                       columns, columns);
    tc__buf_printf(text, "head_matrix, %zu, %s> head_few;\n", rows, norm);
    tc__buf_printf(text, "DECODE_PRODUCT(head, head_matrix, %zu, 1, 0, %s, OUT_STORE, NO_PAIR)\n",
                   rows, norm);
    tc__buf_printf(text,
                   "EACH_PRODUCT(head_each, head_few, %zu, 0, %s, OUT_STORE, NO_PAIR)\n", rows,
                   norm);
}

void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                      tc__buf *text) {
    const char *norm = weights->arch.norm == TC__NORM_LAYER ? "IN_LAYER" : "IN_RMS";
    programs_constants(weights, sm_count, text);
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) programs_decode(weights, kinds, role, i, text);
    programs_head(weights, norm, text);
    tc__buf_str(
        text, "KERNEL(embed, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, true))\n"
              "LAUNCH(embed, 1, 256, 0)\n"
              "CLUSTER_KERNEL(attention, DECODE_CLUSTER, DECODE_THREADS, DECODE_RESIDENT, "
              "DecodeAttentionArgs, (attention_decode<1, DECODE_CLUSTER>(args)))\n"
              "LAUNCH_CLUSTERS(attention, KV_HEADS *HEAD_TILES *DECODE_CLUSTER, DECODE_THREADS, "
              "(DecodeRoom<1, DECODE_CLUSTER>::SMEM), 1, DECODE_CLUSTER)\n"
              "KERNEL(attention_few, DECODE_THREADS, 1, DecodeAttentionArgs, "
              "(attention_decode<FEW_TOKENS, 1>(args)))\n"
              "LAUNCH_TOKENS(attention_few, KV_HEADS *HEAD_TILES, DECODE_THREADS, "
              "(DecodeRoom<FEW_TOKENS, 1>::SMEM), FEW_TOKENS)\n"
              "KERNEL(sample_token, SAMPLE_THREADS, 1, SampleArgs, sample(args))\n"
              "LAUNCH(sample_token, SAMPLE_BLOCKS, SAMPLE_THREADS, 0)\n"
              "KERNEL(widen, 256, 1, WidenArgs, bf16_to_f16(args))\n"
              "LAUNCH(widen, 4 * SM_COUNT, 256, 0)\n"
              "KERNEL(read_loop, 512, 1, ReadArgs, read_all(args))\n"
              "LAUNCH(read_loop, 4 * SM_COUNT, 512, 0)\n"
              "KERNEL(random_fill, 512, 1, FillArgs, random_fill_words(args))\n"
              "LAUNCH(random_fill, 4 * SM_COUNT, 512, 0)\n");
}

/* "PREFILL_PRODUCT(t128_qkv_0, W4, 4096, 128, 12288, 128, TO_VECTORS)" and the like. */
static void programs_prefill(const tc__weights *weights, const tc__kinds *kinds, int size,
                             tc__buf *text) {
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) {
            const tc__tensor *matrix = tc__role_matrix(&weights->layers[0], role);
            tc__buf_printf(text, "PREFILL_PRODUCT(t%d_%s_%d, %s, %zu, %u, %zu, %d, %s)\n", size,
                           programs_roles[role], i, programs_type_name(kinds, role, i),
                           matrix->columns, programs_unit(weights, kinds, role, i), matrix->rows,
                           size, programs_to[role]);
        }
}

void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                       tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 128, text);
    tc__buf_str(text,
                "KERNEL(embed_all, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, false))\n"
                "LAUNCH(embed_all, 0, 256, 0)\n"
                "ROWS_KERNEL(rows_hidden, HIDDEN)\n"
                "KERNEL(settle, 256, 1, SettleArgs, settle_operand<INTERMEDIATE>(args))\n"
                "LAUNCH(settle, 0, 256, 0)\n"
                "KERNEL(rope, 256, 1, PrefillAttentionArgs, rope_write(args))\n"
                "LAUNCH(rope, ROPE_PARTS, 256, 0)\n"
                "KERNEL(attention_all, PREFILL_THREADS, 2, PrefillAttentionArgs, "
                "attention_prefill(args))\n"
                "LAUNCH_TOKENS(attention_all, HEADS, PREFILL_THREADS, PREFILL_SMEM, "
                "PREFILL_QUERIES)\n"
                "KERNEL(attention_parts, 256, 1, PrefillAttentionArgs, attention_merge(args))\n"
                "LAUNCH(attention_parts, 0, 256, 0)\n");
}

void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                            tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 256, text);
}

void tc__write_prefill_few(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                           tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 16, text);
    programs_prefill(weights, kinds, 64, text);
}

void tc__cut_program(const tc__buf *text, size_t i, size_t n, tc__buf *part) {
    size_t kernels = 0;
    for (size_t at = 0, end; at < text->len; at = end) {
        const char *line = text->data + at;
        const char *newline = memchr(line, '\n', text->len - at);
        end = newline ? (size_t)(newline - text->data) + 1 : text->len;
        bool instance = *line >= 'A' && *line <= 'Z', launch = !strncmp(line, "LAUNCH", 6);
        kernels += instance && !launch;
        if (!instance || (kernels - 1) % n == i) tc__buf_add(part, line, end - at);
    }
}
