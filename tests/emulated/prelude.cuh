// prelude - src/kernels/prelude.cuh for a processor: what the kernels stand on, in plain C++, so
// that their arithmetic and their addresses can be tested where there is no GPU. Threads are
// fibers that run one after the other, the warps in an order that changes. Lanes meet in shuffles
// and matrix instructions, blocks and clusters at their barriers; a barrier that nobody will
// complete is found. Copies to shared memory, which begins as NaNs, are made either at once or,
// when emulated.late, only when somebody waits for them: what reads or writes too early shows with
// one of the two.
//
// The kernels' files are compiled as they are, but for `extern __shared__` (see test_emulated.sh).

#ifndef TC_PRELUDE
#define TC_PRELUDE

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define TC_HOPPER 1
#define KERNELS_OVERLAP 1
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static // blocks with such variables run one at a time
#define __align__(bytes) __attribute__((aligned(bytes)))

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
struct int4 {
    int x, y, z, w;
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
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

// ---- threads ----

constexpr int EMULATED_SHARED = 232448; // bytes of a block

struct Meeting { // of a known number of threads, again and again
    int arrived = 0;
    unsigned round = 0;
};
struct WarpMeeting : Meeting {
    u32 given[2][32][8]; // by each lane in an even and in an odd round
};
struct Copy { // to shared memory; from nowhere: zeros
    u32 to;
    const void *from;
    u32 bytes;
};
struct TransactionBarrier { // mbarrier
    int arrivals = 0, pending = 0;
    long bytes = 0;
    unsigned phase = 0;
    std::vector<Copy> due;
};
struct EmulatedBlock {
    int threads, rank; // those that have not ended; in the cluster
    u8 *shared;
    std::vector<WarpMeeting> warps;
    Meeting meeting; // __syncthreads
    std::map<u32, TransactionBarrier> barriers;
};
struct EmulatedThread {
    dim3 thread, block_index;
    EmulatedBlock *block;
    int lane, warp;
    bool started, done, waited; // for the kernel before
    jmp_buf place;
    std::vector<char> stack;
    std::vector<Copy> open;                // since the last commit
    std::vector<std::vector<Copy>> groups; // committed, not waited for
};

static struct {
    bool late;
    EmulatedThread *now;
    std::vector<EmulatedThread> threads;
    std::vector<EmulatedBlock> cluster;
    Meeting cluster_meeting;
    dim3 grid, block;
    jmp_buf scheduler;
    std::function<void()> kernel;
    std::function<void()> previous; // what the kernel before this one does; done when a thread waits
    std::function<void()> telling;  // what kernels do that tell of something; done when one asks
    std::set<const u8 *> prefetched;
    long steps; // anything that may let another thread go on
} emulated;

#define threadIdx (emulated.now->thread)
#define blockIdx (emulated.now->block_index)
#define gridDim (emulated.grid)
#define blockDim (emulated.block)

inline void emulated_demand(bool condition, const char *what) {
    if (condition) return;
    printf("the emulated GPU: block %u, %u, thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x,
           what);
    fflush(stdout);
    _Exit(1); // to free this thread's own stack would crash
}

inline void emulated_yield() {
    if (!_setjmp(emulated.now->place)) _longjmp(emulated.scheduler, 1);
}

inline void emulated_release(Meeting &meeting) {
    meeting.arrived = 0, meeting.round++, emulated.steps++;
}
inline void emulated_meet(Meeting &meeting, int threads) {
    const unsigned round = meeting.round;
    if (++meeting.arrived < threads)
        while (meeting.round == round) emulated_yield();
    else
        emulated_release(meeting);
}

// Every lane gives n words and gets those of all: [lane][word].
inline const u32 (*emulated_exchange(const u32 *words, int n))[8] {
    WarpMeeting &warp = emulated.now->block->warps[emulated.now->warp];
    u32(*given)[8] = warp.given[warp.round & 1];
    for (int i = 0; i < n; i++) given[emulated.now->lane][i] = words[i];
    emulated_meet(warp, 32);
    return given;
}

inline int emulated_cluster_threads() { // that have not ended
    int threads = 0;
    for (const EmulatedBlock &block : emulated.cluster) threads += block.threads;
    return threads;
}

static void emulated_entry() {
    emulated.kernel();
    EmulatedBlock &block = *emulated.now->block;
    Meeting &all = block.meeting;
    emulated.now->done = true, emulated.steps++;
    if (--block.threads && all.arrived == block.threads) emulated_release(all);
    Meeting &cluster = emulated.cluster_meeting;
    if (cluster.arrived && cluster.arrived == emulated_cluster_threads()) emulated_release(cluster);
    _longjmp(emulated.scheduler, 1);
}

// Goes on with a thread until it waits or ends.
static void emulated_resume(EmulatedThread &t) {
    static ucontext_t from, to; // the first time: how a fiber gets its stack
    emulated.now = &t;
    if (_setjmp(emulated.scheduler)) return;
    if (t.started) _longjmp(t.place, 1);
    t.started = true;
    getcontext(&to);
    to.uc_stack.ss_sp = t.stack.data(), to.uc_stack.ss_size = t.stack.size();
    to.uc_link = nullptr;
    makecontext(&to, emulated_entry, 0);
    swapcontext(&from, &to);
}

// Runs the blocks of one cluster.
static void emulated_cluster(dim3 first, int cluster, int threads) {
    static unsigned turn;
    std::vector<EmulatedThread> &all = emulated.threads;
    all.resize(cluster * threads);
    emulated.cluster.assign(cluster, EmulatedBlock());
    emulated.cluster_meeting = Meeting();
    for (int b = 0; b < cluster; b++) {
        EmulatedBlock &block = emulated.cluster[b];
        block.threads = threads, block.rank = b, block.warps.resize(threads / 32);
        block.shared = (u8 *)aligned_alloc(1024, EMULATED_SHARED);
        memset(block.shared, 0xff, EMULATED_SHARED); // numbers that are not
    }
    for (size_t i = 0; i < all.size(); i++) {
        EmulatedThread &t = all[i];
        const int number = (int)i % threads, b = (int)i / threads;
        t.thread = {(unsigned)number, 0, 0}, t.block_index = {first.x + b, first.y, 0};
        t.block = &emulated.cluster[b], t.lane = number % 32, t.warp = number / 32;
        t.started = t.done = t.waited = false;
        t.open.clear(), t.groups.clear();
        t.stack.resize(128 << 10);
    }
    for (size_t left = all.size(); left;) {
        const long before = emulated.steps;
        const size_t begin = turn++ % (all.size() / 32) * 32;
        for (size_t i = 0; i < all.size(); i++) {
            EmulatedThread &t = all[(begin + i) % all.size()];
            if (t.done) continue;
            emulated_resume(t);
            left -= t.done;
        }
        emulated_demand(emulated.steps != before, "all threads wait for ever");
    }
    for (EmulatedBlock &block : emulated.cluster) {
        for (const auto &barrier : block.barriers)
            emulated_demand(barrier.second.due.empty(), "copies that nobody has waited for");
        free(block.shared);
    }
}

// Blocks must not count on an order: the last rows of the grid come first.
static void emulated_launch(dim3 grid, int threads, int cluster, std::function<void()> kernel) {
    emulated.kernel = kernel, emulated.grid = grid, emulated.block = {(unsigned)threads, 1, 1};
    for (unsigned y = grid.y; y-- > 0;)
        for (unsigned x = 0; x < grid.x; x += cluster)
            emulated_cluster({x, y, 0}, cluster, threads);
}

inline void __syncthreads() {
    EmulatedBlock *block = emulated.now->block;
    emulated_meet(block->meeting, block->threads);
}
inline void __syncwarp() {
    u32 nothing = 0;
    emulated_exchange(&nothing, 1);
}
inline void __threadfence() {}
inline void wait_for_previous() {
    if (emulated.previous) emulated.previous();
    emulated.previous = nullptr;
    emulated.now->waited = true;
}
inline void launch_dependents() {}
inline void tell(u32 *word) {
    emulated_demand(emulated.now->waited, "it tells before it has waited");
    *word = 1;
}
inline u32 told(const u32 *word) {
    if (emulated.telling) emulated.telling();
    emulated.telling = nullptr;
    return *word;
}
inline void atomicAdd(float *p, float v) { *p += v; }
inline void atomicMax(int *p, int v) { *p = std::max(*p, v); }
inline u32 atomicAdd(u32 *p, u32 v) { return (*p += v) - v; }
inline int atomicAdd(int *p, int v) { return (*p += v) - v; }
inline void atomicOr(u32 *p, u32 v) { *p |= v; }
inline void store_u32_host(u32 *p, u32 v) { *p = v; }
inline u32 arrive(u32 *count) { return (*count)++; }

// ---- numbers ----

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
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 max(u32 a, u32 b) { return a > b ? a : b; }
inline u64 max(u64 a, u64 b) { return a > b ? a : b; }
inline int __popc(u32 v) { return __builtin_popcount(v); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
#define __expf expf
#define __logf logf
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float exp2_fast(float x) { return x < -126 ? 0 : exp2f(x); }
inline void sincospif(float x, float *sine, float *cosine) {
    *sine = (float)sin(M_PI * (double)x), *cosine = (float)cos(M_PI * (double)x);
}
inline float max_or_nan(float a, float b) { return std::isnan(a) || a > b ? a : b; }
inline i32 byte_sum(u32 v) {
    i32 sum = 0;
    for (int i = 0; i < 4; i++) sum += (signed char)(v >> 8 * i);
    return sum;
}
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
    const u64 bytes = (u64)b << 32 | a;
    u32 r = 0;
    for (int i = 0; i < 4; i++) r |= (u32)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return r;
}

inline float f16_to_f32(u16 h) {
    const u32 size = (h & 0x7fff) << 13, sign = (u32)(h & 0x8000) << 16;
    if ((h & 0x7c00) == 0x7c00) return __uint_as_float(sign | 0x7f800000 | size);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(size) * 0x1p112f));
}
inline u16 f32_to_f16(float f) {
    const u32 sign = __float_as_uint(f) >> 16 & 0x8000;
    u32 x = __float_as_uint(f) & 0x7fffffff;
    if (x > 0x7f800000) return (u16)(sign | 0x7e00);
    if (x >= 0x477ff000) return (u16)(sign | 0x7c00);
    if (x < 0x38800000) // the sum's last bit is 2^-24, that of small binary16 numbers
        return (u16)(sign | (__float_as_uint(__uint_as_float(x) + 0.5f) - 0x3f000000));
    x += 0xfff + (x >> 13 & 1);
    return (u16)(sign | (x - 0x38000000) >> 13);
}
inline float bf16_to_f32(u16 b) { return __uint_as_float((u32)b << 16); }
inline float f16_part(u32 two, int i) { return f16_to_f32((u16)(two >> 16 * i)); }
inline u32 f32_to_f16x2(float low, float high) { return f32_to_f16(low) | f32_to_f16(high) << 16; }
inline u32 f16x2_fma(u32 a, u32 b, u32 c) { // exact in binary64
    float r[2];
    for (int i = 0; i < 2; i++)
        r[i] = (float)((double)f16_part(a, i) * f16_part(b, i) + f16_part(c, i));
    return f32_to_f16x2(r[0], r[1]);
}
inline u32 f16x2_add(u32 a, u32 b) { return f16x2_fma(a, 0x3c003c00, b); }
inline u32 f16x2_sub(u32 a, u32 b) { return f16x2_fma(b, 0xbc00bc00, a); }
inline u32 f16x2_mul(u32 a, u32 b) { return f16x2_fma(a, b, 0x80008000); }
inline u32 f16x2_high(u32 a) { return a >> 16 | (a & 0xffff0000); }
inline u32 and_or(u32 a, u32 mask, u32 bits) { return (a & mask) | bits; }

inline void w4_to_f16x2(u32 word, u32 low, u32 high, u32 a[4]) {
    const u32 bias = 0x64006400, sixteenth = 0x2c002c00;
    a[0] = f16x2_sub(and_or(word, 0x000f000f, bias), low);
    a[1] = f16x2_fma(and_or(word, 0x00f000f0, bias), sixteenth, high);
    a[2] = f16x2_sub(and_or(word >> 8, 0x000f000f, bias), low);
    a[3] = f16x2_fma(and_or(word >> 8, 0x00f000f0, bias), sixteenth, high);
}

// ---- warps ----

template <class T> inline T __shfl_sync(u32, T v, int lane) {
    static_assert(sizeof v == 4 || sizeof v == 8, "one word or two");
    u32 words[2];
    memcpy(words, &v, sizeof v);
    memcpy(&v, emulated_exchange(words, sizeof v / 4)[lane], sizeof v);
    return v;
}
template <class T> inline T __shfl_up_sync(u32 lanes, T v, int offset) {
    return __shfl_sync(lanes, v, std::max(emulated.now->lane - offset, 0));
}
inline u32 __ballot_sync(u32, bool v) {
    const u32 word = v;
    const u32(*all)[8] = emulated_exchange(&word, 1);
    u32 bits = 0;
    for (int i = 0; i < 32; i++) bits |= all[i][0] << i;
    return bits;
}
template <class T> inline T __shfl_xor_sync(u32 lanes, T v, int offset) {
    return __shfl_sync(lanes, v, emulated.now->lane ^ offset);
}
inline bool __any_sync(u32, bool v) {
    const u32 word = v;
    const u32(*all)[8] = emulated_exchange(&word, 1);
    for (int i = 0; i < 32; i++)
        if (all[i][0]) return true;
    return false;
}
// The lanes of `mask`; all lanes of the warp come here, whatever their masks.
template <class T> inline T emulated_reduce(u32 mask, T v, T (*join)(T, T)) {
    const u32 word = (u32)v;
    const u32(*all)[8] = emulated_exchange(&word, 1);
    for (int i = 0; i < 32; i++)
        if (i != emulated.now->lane && mask >> i & 1) v = join(v, (T)all[i][0]);
    return v;
}
inline int __reduce_max_sync(u32 mask, int v) {
    return emulated_reduce<int>(mask, v, [](int a, int b) { return max(a, b); });
}
inline u32 __reduce_max_sync(u32 mask, u32 v) {
    return emulated_reduce<u32>(mask, v, [](u32 a, u32 b) { return a > b ? a : b; });
}
inline int __reduce_add_sync(u32 mask, int v) {
    return emulated_reduce<int>(mask, v, [](int a, int b) { return a + b; });
}
inline float warp_sum(float v) {
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
inline float warp_max(float v) {
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}
inline bool elect_one() { return emulated.now->lane == 0; }
inline int warp_uniform(int v) {
    const u32 word = (u32)v;
    const u32(*all)[8] = emulated_exchange(&word, 1);
    for (int i = 0; i < 32; i++) emulated_demand((int)all[i][0] == v, "lanes differ");
    return v;
}

// ---- memory: an address in shared memory is an offset into the block's ----

inline u8 *emulated_at(u32 address, u32 bytes) {
    emulated_demand(address % std::min(bytes, 16u) == 0 && address + bytes <= EMULATED_SHARED,
                    "an address in shared memory that is not aligned or too large");
    return emulated.now->block->shared + address;
}
template <class T> inline T emulated_load(u32 address) {
    T v;
    memcpy(&v, emulated_at(address, sizeof v), sizeof v);
    return v;
}
inline u32 shared_address(const void *p) {
    return (u32)((const u8 *)p - emulated.now->block->shared);
}
inline u32 keep(u32 v) { return v; }
inline const float *keep(const float *p) { return p; }
inline uint4 load_shared_16(u32 a) { return emulated_load<uint4>(a); }
inline uint2 load_shared_8(u32 a) { return emulated_load<uint2>(a); }
inline float4 load_shared_float4(u32 a) { return emulated_load<float4>(a); }
inline float load_shared_f32(u32 a) { return emulated_load<float>(a); }
inline void store_shared_f32(u32 a, float v) { memcpy(emulated_at(a, sizeof v), &v, sizeof v); }
template <class T> inline T emulated_global(const void *p) {
    emulated_demand((u64)p % sizeof(T) == 0, "an address that is not aligned");
    return *(const T *)p;
}
inline uint4 load_stream(const void *p) { return emulated_global<uint4>(p); }
inline float4 load_float4_l2(const float *p) { return emulated_global<float4>(p); }
inline float2 load_float2_l2(const float *p) { return emulated_global<float2>(p); }
inline float load_f32_l2(const float *p) { return emulated_global<float>(p); }
inline void add_f32(float *p, float v) { *p += v; }
inline u32 load_u32_l2(const u32 *p) { return emulated_global<u32>(p); }
inline void prefetch_l2(const void *p) { emulated.prefetched.insert((const u8 *)p); }

inline void emulated_copy(EmulatedBlock &block, const Copy &copy) {
    if (copy.from)
        memcpy(block.shared + copy.to, copy.from, copy.bytes);
    else
        memset(block.shared + copy.to, 0, copy.bytes);
}
inline void emulated_check(const Copy &copy, u32 align) {
    emulated_demand(((u64)copy.from | copy.to) % align == 0, "a copy that is not aligned");
    emulated_demand(copy.to + copy.bytes <= EMULATED_SHARED, "a copy to where there is no memory");
}
inline void emulated_copy_async(const Copy &copy) {
    emulated_check(copy, copy.bytes);
    if (emulated.late)
        emulated.now->open.push_back(copy);
    else
        emulated_copy(*emulated.now->block, copy);
}
inline void copy_async_16(u32 shared, const void *global) {
    emulated_copy_async({shared, global, 16});
}
inline void copy_async_8(u32 shared, const void *global) {
    emulated_copy_async({shared, global, 8});
}
inline void copy_async_16_of_128(u32 shared, const void *global) { copy_async_16(shared, global); }
inline void copy_async_16_of_128_if(bool wanted, u32 shared, const void *global) {
    if (wanted) copy_async_16(shared, global);
}
inline void copy_async_16_of_256(u32 shared, const void *global) { copy_async_16(shared, global); }
inline void copy_async_16_or_zero(u32 shared, const void *global, bool valid) {
    emulated_copy_async({shared, valid ? global : nullptr, 16});
}
inline void copy_async_commit() {
    emulated.now->groups.push_back(emulated.now->open);
    emulated.now->open.clear();
}
template <int pending> inline void copy_async_wait() {
    std::vector<std::vector<Copy>> &groups = emulated.now->groups;
    for (; (int)groups.size() > pending; groups.erase(groups.begin()))
        for (const Copy &copy : groups[0]) emulated_copy(*emulated.now->block, copy);
}

// ---- matrix instructions ----

// A of 16 x 16 out of the lanes' words: row r, column k.
inline float emulated_a(const u32 (*words)[8], int r, int k) {
    return f16_part(words[4 * (r & 7) + (k & 7) / 2][(r >> 3) + 2 * (k >> 3)], k & 1);
}
inline void load_matrix_x4(u32 r[4], u32 row) {
    const u32(*rows)[8] = emulated_exchange(&row, 1);
    for (int m = 0; m < 4; m++)
        r[m] = emulated_load<u32>(rows[8 * m + emulated.now->lane / 4][0] +
                                  4 * (emulated.now->lane % 4));
}
inline void load_matrix_x4_trans(u32 r[4], u32 row) {
    const u32(*rows)[8] = emulated_exchange(&row, 1);
    const int column = emulated.now->lane / 4, first = emulated.now->lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
        const u32 low = emulated_load<u16>(rows[8 * m + first][0] + 2 * column);
        r[m] = low | emulated_load<u16>(rows[8 * m + first + 1][0] + 2 * column) << 16;
    }
}
inline void mma_16x8x16(float d[4], const u32 a[4], u32 b0, u32 b1) {
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const u32(*words)[8] = emulated_exchange(mine, 6);
    for (int i = 0; i < 4; i++) {
        const int r = emulated.now->lane / 4 + 8 * (i >> 1);
        const int n = 2 * (emulated.now->lane % 4) + i % 2;
        for (int k = 0; k < 16; k++)
            d[i] += emulated_a(words, r, k) *
                    f16_part(words[4 * n + (k & 7) / 2][4 + (k >> 3)], k & 1);
    }
}
inline void mma_16x8x32(i32 d[4], const u32 a[4], u32 b0, u32 b1) { // u8 x i8
    const u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const u32(*words)[8] = emulated_exchange(mine, 6);
    for (int i = 0; i < 4; i++) {
        const int r = emulated.now->lane / 4 + 8 * (i >> 1);
        const int n = 2 * (emulated.now->lane % 4) + i % 2;
        for (int k = 0; k < 32; k++) {
            const int of = (k & 15) / 4, shift = 8 * (k & 3);
            d[i] += (int)(words[4 * (r & 7) + of][(r >> 3) + 2 * (k >> 4)] >> shift & 255) *
                    (signed char)(words[4 * n + of][4 + (k >> 4)] >> shift);
        }
    }
}

// ---- sm_90a ----

inline TransactionBarrier &emulated_barrier(EmulatedBlock &block, u32 at) {
    emulated_demand(at % 8 == 0 && block.barriers.count(at), "a barrier that was not initialised");
    return block.barriers[at];
}
inline void emulated_arrive(TransactionBarrier &b, int arrivals, long bytes) {
    b.pending -= arrivals, b.bytes += bytes, emulated.steps++;
    emulated_demand(b.pending >= 0, "too many arrivals at a barrier");
    if (b.pending == 0 && b.bytes == 0) b.phase++, b.pending = b.arrivals;
}
inline void barrier_init(u32 barrier, u32 arrivals) {
    TransactionBarrier &b = emulated.now->block->barriers[barrier];
    b.arrivals = b.pending = (int)arrivals;
}
inline void barrier_init_fence() {}
inline void barrier_expect(u32 barrier, u32 bytes) {
    emulated_arrive(emulated_barrier(*emulated.now->block, barrier), 1, bytes);
}
inline void barrier_arrive(u32 barrier) {
    emulated_arrive(emulated_barrier(*emulated.now->block, barrier), 1, 0);
}
inline void barrier_arrive_at(u32 barrier, u32 rank) {
    emulated_arrive(emulated_barrier(emulated.cluster[rank], barrier), 1, 0);
}
inline void copy_async_arrive(u32 barrier) {
    copy_async_commit();
    copy_async_wait<0>();
    emulated_arrive(emulated_barrier(*emulated.now->block, barrier), 1, 0);
}
inline void emulated_complete(EmulatedBlock &block, TransactionBarrier &barrier, const Copy &copy) {
    emulated_copy(block, copy);
    emulated_arrive(barrier, 0, -(long)copy.bytes);
}
inline void barrier_wait(u32 barrier, u32 parity) {
    TransactionBarrier &b = emulated_barrier(*emulated.now->block, barrier);
    while ((b.phase & 1) == parity) {
        for (const Copy &copy : b.due) emulated_complete(*emulated.now->block, b, copy);
        b.due.clear();
        if ((b.phase & 1) == parity) emulated_yield();
    }
}
inline void copy_bulk_multicast(u32 shared, const void *global, u32 bytes, u32 barrier,
                                u16 blocks) {
    const Copy copy = {shared, global, bytes};
    emulated_check(copy, 16);
    emulated_demand(bytes % 16 == 0, "a bulk copy of an odd size");
    for (EmulatedBlock &block : emulated.cluster)
        if (blocks >> block.rank & 1) {
            TransactionBarrier &b = emulated_barrier(block, barrier);
            if (emulated.late)
                b.due.push_back(copy);
            else
                emulated_complete(block, b, copy);
        }
}
inline void copy_bulk(u32 shared, const void *global, u32 bytes, u32 barrier) {
    copy_bulk_multicast(shared, global, bytes, barrier, (u16)(1 << emulated.now->block->rank));
}
inline u32 cluster_rank() { return (u32)emulated.now->block->rank; }
inline void cluster_sync() {
    emulated_meet(emulated.cluster_meeting, emulated_cluster_threads());
}
// To arrive early is not emulated: all meet where they wait.
inline void cluster_arrive() {}
inline void cluster_wait() { cluster_sync(); }
template <class V> inline void emulated_give(u32 shared, u32 barrier, u32 rank, V v) {
    emulated_demand(shared % sizeof v == 0 && shared + sizeof v <= EMULATED_SHARED &&
                        rank < emulated.cluster.size(),
                    "an address in another block that is not aligned, or nowhere");
    EmulatedBlock &block = emulated.cluster[rank];
    memcpy(block.shared + shared, &v, sizeof v);
    emulated_arrive(emulated_barrier(block, barrier), 0, -(long)sizeof v);
}
inline void give_4(u32 shared, u32 barrier, u32 rank, float v) {
    emulated_give(shared, barrier, rank, v);
}
inline void give_8(u32 shared, u32 barrier, u32 rank, float2 v) {
    emulated_give(shared, barrier, rank, v);
}
inline void give_16(u32 shared, u32 barrier, u32 rank, float4 v) {
    emulated_give(shared, barrier, rank, v);
}
template <int count> inline void registers_up_to() {}
template <int count> inline void registers_down_to() {}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int pending> inline void wgmma_wait() {}
template <int N> inline void keep_all(float (&)[N]) {}
inline u64 wgmma_operand(u32 shared) {
    return 1ull << 62 | (u64)(1024 >> 4) << 32 | 1ull << 16 | (shared & 0x3ffff) >> 4;
}
template <int N> inline void emulated_wgmma(float (&d)[N / 2], const u32 *a, u64 operand) {
    const u32(*words)[8] = emulated_exchange(a, 4);
    const u32 start = (u32)(operand & 0x3fff) << 4, eight = (u32)(operand >> 32 & 0x3fff) << 4;
    for (int i = 0; i < N / 2; i++) {
        const int r = emulated.now->lane / 4 + 8 * (i >> 1 & 1);
        const int n = 8 * (i / 4) + 2 * (emulated.now->lane % 4) + i % 2;
        for (int k = 0; k < 16; k++) {
            u32 at = start + n / 8 * eight + n % 8 * 128 + 2 * k;
            at ^= at >> 3 & 0x70; // the swizzle goes by the address
            d[i] += emulated_a(words, r, k) * f16_to_f32(emulated_load<u16>(at));
        }
    }
}
template <int ADD = 1> inline void wgmma_64x16x16(float (&d)[8], const u32 *a, u64 b) {
    for (int i = 0; i < 8 && !ADD; i++) d[i] = 0;
    emulated_wgmma<16>(d, a, b);
}
template <int ADD = 1> inline void wgmma_64x64x16(float (&d)[32], const u32 *a, u64 b) {
    for (int i = 0; i < 32 && !ADD; i++) d[i] = 0;
    emulated_wgmma<64>(d, a, b);
}
inline void wgmma_64x128x16(float (&d)[64], const u32 *a, u64 b) { emulated_wgmma<128>(d, a, b); }
inline void wgmma_64x256x16(float (&d)[128], const u32 *a, u64 b) { emulated_wgmma<256>(d, a, b); }

#endif // TC_PRELUDE
