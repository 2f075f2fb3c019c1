/* emulator - runs blocks of the project's CUDA kernels on the CPU, thread by thread, so that tests
 * can compare them with plain arithmetic where there is no GPU. C++, included in place of
 * prelude.cuh, whose functions it defines as far as attention.cuh uses them.
 *
 * A thread is a fiber. Operations of a warp or a block (shuffles, matrix instructions, barriers)
 * are places where fibers meet; between them they run one after another. Copies to shared memory
 * happen either at once or, with `late`, only when the thread waits for them: what reads or writes
 * too early shows with one of the two. Shared memory begins as NaNs. */
#ifndef EMULATOR_H
#define EMULATOR_H

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define TC_PRELUDE
#define __device__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local /* one thread runs all fibers, so a block shares it */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;
struct float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct uint2 {
    u32 x, y;
};
struct uint4 {
    u32 x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
};
using std::max;
using std::min;

inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline uint2 make_uint2(u32 x, u32 y) {
    return {x, y};
}

/* ---- fibers ---- */

struct Copy {
    u32 to;
    const void *from;
    bool valid;
};

struct Fiber {
    dim3 thread;
    int warp, lane;
    bool started, done;
    jmp_buf place;
    std::vector<char> stack;
    std::vector<Copy> open;                /* copies since the last commit */
    std::vector<std::vector<Copy>> groups; /* committed, unfinished */
};

struct Meeting {
    int arrived;
    unsigned number;
};

struct Emulator {
    bool late;
    std::vector<Fiber> fibers;
    Fiber *running;
    jmp_buf scheduler;
    std::vector<Meeting> warps;
    Meeting block;
    int alive;
    unsigned long events; /* something moved on */
    std::function<void()> kernel;
    u64 mailbox[32][32][4]; /* of warps and lanes */
    u64 *own() { return mailbox[running->warp][running->lane]; }
    const u64 *of(int lane) { return mailbox[running->warp][lane]; }
};
static Emulator emulator;
static dim3 blockIdx, gridDim, blockDim;
thread_local __align__(1024) u8 smem[256 << 10];
#define threadIdx (emulator.running->thread)

[[noreturn]] static void emulator_fail(const char *what) {
    printf("block %u, %u, thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what);
    exit(1);
}

static void emulator_yield() {
    if (!_setjmp(emulator.running->place)) _longjmp(emulator.scheduler, 1);
}

static void emulator_meet(Meeting &meeting, int number) {
    const unsigned now = meeting.number;
    emulator.events++;
    if (++meeting.arrived == number)
        meeting.arrived = 0, meeting.number++;
    else
        while (meeting.number == now) emulator_yield();
}

static void emulator_enter() {
    emulator.kernel();
    emulator.running->done = true;
    emulator.events++;
    emulator.alive--;
    if (emulator.alive && emulator.block.arrived == emulator.alive)
        emulator.block.arrived = 0, emulator.block.number++;
    _longjmp(emulator.scheduler, 1);
}

static void emulator_resume(Fiber &fiber) {
    static ucontext_t from, to;
    emulator.running = &fiber;
    if (_setjmp(emulator.scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&to);
    to.uc_stack.ss_sp = fiber.stack.data();
    to.uc_stack.ss_size = fiber.stack.size();
    to.uc_link = nullptr;
    makecontext(&to, emulator_enter, 0);
    swapcontext(&from, &to);
}

/* Runs one block; the warps take turns in an order that changes. */
static void emulator_run(int threads, std::function<void()> kernel) {
    static unsigned first;
    emulator.kernel = kernel;
    emulator.fibers.resize((size_t)threads);
    emulator.warps.assign((size_t)threads / 32, Meeting());
    emulator.block = Meeting();
    emulator.alive = threads;
    blockDim = {(unsigned)threads, 1, 1};
    memset(smem, 0xff, sizeof smem);
    for (int i = 0; i < threads; i++) {
        Fiber &fiber = emulator.fibers[(size_t)i];
        fiber.thread = {(unsigned)i, 0, 0};
        fiber.warp = i / 32, fiber.lane = i % 32;
        fiber.started = fiber.done = false;
        fiber.open.clear(), fiber.groups.clear();
        fiber.stack.resize(128 << 10);
    }
    while (emulator.alive) {
        const unsigned long before = emulator.events;
        for (int i = 0, at = (int)(first++ % (threads / 32)) * 32; i < threads; i++) {
            Fiber &fiber = emulator.fibers[(size_t)((i + at) % threads)];
            if (!fiber.done) emulator_resume(fiber);
        }
        if (emulator.events == before) emulator_fail("threads wait for each other for ever");
    }
}

/* ---- what CUDA has ---- */

inline void __syncthreads() {
    emulator_meet(emulator.block, emulator.alive);
}
inline void __syncwarp() {
    emulator_meet(emulator.warps[(size_t)emulator.running->warp], 32);
}
inline void __threadfence() {}

/* Every lane's number to all of them. */
template <class T, class Use> static void emulator_exchange(T mine, Use use) {
    memcpy(emulator.own(), &mine, sizeof mine);
    __syncwarp();
    use();
    __syncwarp();
}
template <class T> static T emulator_lane(int lane) {
    T value;
    memcpy(&value, emulator.of(lane), sizeof value);
    return value;
}

template <class T> static T __shfl_xor_sync(u32, T mine, int distance) {
    T other;
    emulator_exchange(mine, [&] { other = emulator_lane<T>(emulator.running->lane ^ distance); });
    return other;
}
static bool __any_sync(u32, bool mine) {
    bool any = false;
    emulator_exchange(mine, [&] {
        for (int lane = 0; lane < 32; lane++) any |= emulator_lane<bool>(lane);
    });
    return any;
}

inline float rsqrtf(float x) {
    return 1 / sqrtf(x);
}
inline void sincospif(float x, float *sine, float *cosine) {
    *sine = (float)sin(M_PI * (double)x), *cosine = (float)cos(M_PI * (double)x);
}
inline u32 __float_as_uint(float f) {
    u32 bits;
    memcpy(&bits, &f, 4);
    return bits;
}
inline float __uint_as_float(u32 bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* ---- prelude.cuh ---- */

static float f16_to_f32(u16 h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const float size = e == 31 ? (m ? NAN : INFINITY) : ldexpf(e ? 1024 + m : m, (e ? e : 1) - 25);
    return h >> 15 ? -size : size;
}
static u16 f32_to_f16(float f) {
    const u32 bits = __float_as_uint(f), size = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (size > 0x7f800000) return 0x7e00;
    if (size < 0x38800000) return (u16)(sign | (u32)lrintf(ldexpf(fabsf(f), 24)));
    if (size >= 0x477ff000) return (u16)(sign | 0x7c00);
    return (u16)(sign | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}
inline u32 f32_to_f16x2(float low, float high) {
    return f32_to_f16(low) | (u32)f32_to_f16(high) << 16;
}
inline float bf16_to_f32(u16 b) {
    return __uint_as_float((u32)b << 16);
}
inline float exp2_fast(float x) {
    return x < -126 ? 0 : exp2f(x);
}

inline void emulator_aligned(const void *p, size_t bytes) {
    if ((size_t)p % bytes) emulator_fail("an address is not aligned");
}
inline uint4 load_stream(const void *p) {
    emulator_aligned(p, 16);
    return *(const uint4 *)p;
}
inline float4 load_float4_l2(const float *p) {
    emulator_aligned(p, 16);
    return *(const float4 *)p;
}
inline float2 load_float2_l2(const float *p) {
    emulator_aligned(p, 8);
    return *(const float2 *)p;
}
inline float load_f32_l2(const float *p) {
    return *p;
}
inline u32 load_u32_l2(const u32 *p) {
    return *p;
}

inline u32 shared_address(const void *p) {
    return (u32)((const u8 *)p - smem);
}
static void emulator_copy(const Copy &copy) {
    if (copy.to % 16 || copy.to + 16 > sizeof smem) emulator_fail("a bad address in shared memory");
    if (copy.valid)
        memcpy(smem + copy.to, copy.from, 16);
    else
        memset(smem + copy.to, 0, 16);
}
inline void copy_async_16_or_zero(u32 shared, const void *global, bool valid) {
    const Copy copy = {shared, global, valid};
    if (emulator.late)
        emulator.running->open.push_back(copy);
    else
        emulator_copy(copy);
}
inline void copy_async_commit() {
    emulator.running->groups.push_back(emulator.running->open);
    emulator.running->open.clear();
}
template <int pending> static void copy_async_wait() {
    std::vector<std::vector<Copy>> &groups = emulator.running->groups;
    for (; (int)groups.size() > pending; groups.erase(groups.begin()))
        for (const Copy &copy : groups[0]) emulator_copy(copy);
}

inline void wait_for_previous() {}
inline void launch_dependents() {}
inline u32 arrive(u32 *count) {
    return (*count)++;
}

static float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}
static float warp_max(float v) {
    for (int offset = 16; offset > 0; offset >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}
static int warp_uniform(int mine) {
    emulator_exchange(mine, [&] {
        for (int lane = 0; lane < 32; lane++)
            if (emulator_lane<int>(lane) != mine) emulator_fail("lanes differ");
    });
    return mine;
}

/* Element [row][column] of the tile whose rows lanes 8 tile .. 8 tile + 7 point to. */
static u32 emulator_element(int tile, int row, int column) {
    u16 element;
    memcpy(&element, smem + emulator_lane<u32>(8 * tile + row) + 2 * column, 2);
    return element;
}
static void load_matrix_x4(u32 r[4], u32 row) {
    const int g = emulator.running->lane / 4, j = emulator.running->lane % 4 * 2;
    emulator_exchange(row, [&] {
        for (int i = 0; i < 4; i++)
            r[i] = emulator_element(i, g, j) | emulator_element(i, g, j + 1) << 16;
    });
}
static void load_matrix_x4_trans(u32 r[4], u32 row) {
    const int g = emulator.running->lane / 4, j = emulator.running->lane % 4 * 2;
    emulator_exchange(row, [&] {
        for (int i = 0; i < 4; i++)
            r[i] = emulator_element(i, j, g) | emulator_element(i, j + 1, g) << 16;
    });
}
static void mma_16x8x16(float d[4], const u32 a[4], u32 b0, u32 b1) {
    struct Operands {
        u32 a[4], b[2];
    };
    const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const int g = emulator.running->lane / 4, j = emulator.running->lane % 4 * 2;
    emulator_exchange(mine, [&] {
        for (int k = 0; k < 16; k++) {
            const Operands row = emulator_lane<Operands>(4 * g + k % 8 / 2);
            for (int c = 0; c < 4; c++) {
                const Operands column = emulator_lane<Operands>(4 * (j + c % 2) + k % 8 / 2);
                d[c] += f16_to_f32((u16)(row.a[k / 8 * 2 + c / 2] >> 16 * (k % 2))) *
                        f16_to_f32((u16)(column.b[k / 8] >> 16 * (k % 2)));
            }
        }
    });
}

#endif /* EMULATOR_H */
