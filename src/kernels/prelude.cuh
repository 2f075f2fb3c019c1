// prelude - the ground the kernels stand on: types, half precision, memory and matrix instructions.
//
// NVRTC has no include path of its own and users have no CUDA headers, so nothing is included, and
// every line of inline PTX of the project is in this file. Compiled for sm_80 and newer.
//
// Naming: f16x2 is two binary16 in one 32-bit register, the first in the low half. "warp" functions
// are called by all 32 lanes at once.

#ifndef TC_PRELUDE
#define TC_PRELUDE

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "fixed widths");

// ---- half precision ----

__device__ __forceinline__ float f16_to_f32(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

// Round to nearest even; overflow becomes infinity.
__device__ __forceinline__ u16 f32_to_f16(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

__device__ __forceinline__ float bf16_to_f32(u16 b) { return __uint_as_float((u32)b << 16); }

__device__ __forceinline__ u32 f32_to_f16x2(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ u32 f16x2_fma(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

__device__ __forceinline__ u32 f16x2_add(u32 a, u32 b) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// The high half in both halves.
__device__ __forceinline__ u32 f16x2_high(u32 a) { return __byte_perm(a, a, 0x3232); }

__device__ __forceinline__ u32 f16x2_sub(u32 a, u32 b) {
    u32 r;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

__device__ __forceinline__ u32 f16x2_mul(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// (a & mask) | bits in one instruction; the compiler makes two of it when both are constants.
__device__ __forceinline__ u32 and_or(u32 a, u32 mask, u32 bits) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
    return r;
}

// The larger number; not a number if one of them is not.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}

// ---- memory ----

// 16 bytes that are read once: past L1, first to leave L2.
__device__ __forceinline__ uint4 load_stream(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// Data another kernel just wrote: from L2, past a possibly stale L1.
__device__ __forceinline__ float4 load_float4_l2(const float *p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p));
    return v;
}

// Adds to it, whoever else does. Numbers below 2^-126 count as zero.
__device__ __forceinline__ void add_f32(float *p, float v) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory");
}

__device__ __forceinline__ float load_f32_l2(const float *p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}

__device__ __forceinline__ u32 load_u32_l2(const u32 *p) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// A word with which a running kernel tells one that runs beside it that something is there. Nothing
// is fenced: what is told of has reached L2 before, and must be read from there.
__device__ __forceinline__ void tell(u32 *word) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(1) : "memory");
}
__device__ __forceinline__ bool told(const u32 *word) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(word) : "memory");
    return v;
}

// Into host memory that the GPU can reach, past all caches.
__device__ __forceinline__ void store_u32_host(u32 *p, u32 v) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

__device__ __forceinline__ u32 shared_address(const void *p) {
    return (u32)__cvta_generic_to_shared(p);
}

// A value that the compiler must keep: it prefers to compute addresses anew in every iteration.
__device__ __forceinline__ u32 keep(u32 v) {
    asm volatile("" : "+r"(v));
    return v;
}
__device__ __forceinline__ const float *keep(const float *p) {
    asm volatile("" : "+l"(p));
    return p;
}

// Brings the 16 bytes and what lies around them into L2.
__device__ __forceinline__ void prefetch_l2(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Starts a copy of 16 bytes from global to shared memory (both 16-byte aligned), past L1.
__device__ __forceinline__ void copy_async_16(u32 shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// The same; the memory may read the whole 128 or 256 bytes around them at once, for copies to come.
__device__ __forceinline__ void copy_async_16_of_128(u32 shared, const void *global) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global)
                 : "memory");
}
__device__ __forceinline__ void copy_async_16_of_128_if(bool wanted, u32 shared,
                                                        const void *global) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n"
                 "@p cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n}" ::"r"(shared),
                 "l"(global), "r"((u32)wanted)
                 : "memory");
}
__device__ __forceinline__ void copy_async_16_of_256(u32 shared, const void *global) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared), "l"(global)
                 : "memory");
}

// 16 bytes, or 16 zero bytes when `valid` is false (then nothing is read).
__device__ __forceinline__ void copy_async_16_or_zero(u32 shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's committed groups are unfinished.
template <int pending> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

__device__ __forceinline__ uint4 load_shared_16(u32 shared) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(shared)
                 : "memory");
    return v;
}

__device__ __forceinline__ float4 load_shared_float4(u32 shared) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(shared)
                 : "memory");
    return v;
}

__device__ __forceinline__ float load_shared_f32(u32 shared) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(shared) : "memory");
    return v;
}

__device__ __forceinline__ void store_shared_f32(u32 shared, float v) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared), "f"(v) : "memory");
}

__device__ __forceinline__ uint2 load_shared_8(u32 shared) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "r"(shared)
                 : "memory");
    return v;
}

// ---- programmatic dependent launch ----

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define KERNELS_OVERLAP 0
#else
#define KERNELS_OVERLAP 1
#endif

// Waits until the kernels before this one have finished and their results are visible. No effect
// before sm_90, where kernels of a stream do not overlap.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start as soon as all blocks of this one have said so: it may
// load what depends on nothing (weights) while this one works. Shared memory is what limits how
// many of them an SM holds (DecodePick, instances.cuh).
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- matrix instructions ----

// Four 8x8 tiles of 16-bit elements out of shared memory into mma fragments; lane l gives the
// address of row l % 8 of tile l / 8.
__device__ __forceinline__ void load_matrix_x4(u32 r[4], u32 shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_row)
                 : "memory");
}

// The same with each tile transposed.
__device__ __forceinline__ void load_matrix_x4_trans(u32 r[4], u32 shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_row)
                 : "memory");
}

// d += a * b: a is 16x16 (row-major fragment), b 16x8, d 16x8 in binary32.
// Lane l holds d[l/4][2*(l%4) + {0,1}] in d[0], d[1] and row l/4 + 8 in d[2], d[3].
__device__ __forceinline__ void mma_16x8x16(float d[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a * b in whole numbers: a is 16x32 of u8, b 32x8 of i8. Lane l holds of a: row l/4 and
// columns 4*(l%4) + {0..3} in a[0], row l/4 + 8 in a[1], the columns 16 further on in a[2] and
// a[3]; of b: column l/4 and rows 4*(l%4) + {0..3} in b0, 16 further on in b1; d as above.
__device__ __forceinline__ void mma_16x8x32(i32 d[4], const u32 a[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The sum of the four signed bytes of v. NVRTC has the built-in function from 12.3 on only.
__device__ __forceinline__ i32 byte_sum(u32 v) {
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1203
    return __dp4a((i32)v, 0x01010101, 0);
#else
    i32 sum;
    asm("dp4a.s32.s32 %0, %1, 0x01010101, 0;" : "=r"(sum) : "r"(v));
    return sum;
#endif
}

// ---- for attention ----

__device__ __forceinline__ float2 load_float2_l2(const float *p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p));
    return v;
}

// Adds one and gives the count before: what this thread's block wrote before a barrier is visible
// to whoever sees a higher count, and what others wrote to this thread.
__device__ __forceinline__ u32 arrive(u32 *count) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(count)
                 : "memory");
    return before;
}

// A number that is the same in all lanes, so that the compiler knows it: what depends on it alone
// goes into uniform registers, and branches need not expect lanes to part.
__device__ __forceinline__ int warp_uniform(int v) {
    int r;
    asm("redux.sync.max.s32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v));
    return r;
}

// 2^x to 2 ulp; 0 below the normal numbers.
__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// ---- warps ----

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int offset = 16; offset > 0; offset >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// ---- 4-bit weights ----

// One word of a W4 unit (docs/format.md) is this lane's part of a 16x16 A operand of mma: rows r
// and r + 8, four neighbouring columns. Gives a[] with the exact numbers q - zero: a[0] row r,
// columns 0 and 1; a[1] row r + 8, the same columns; a[2] and a[3] the columns 2 and 3. A binary16
// with the bits 0x6400 | n is 1024 + n, so one and-or makes two numbers and one subtraction or fma
// places them. low: 1024 + zero of row r, twice; high: -(64 + zero of row r + 8), twice.
__device__ __forceinline__ void w4_to_f16x2(u32 word, u32 low, u32 high, u32 a[4]) {
    const u32 bias = 0x64006400, sixteenth = 0x2c002c00; // 1024 and 1/16
    a[0] = f16x2_sub(and_or(word, 0x000f000f, bias), low);
    a[1] = f16x2_fma(and_or(word, 0x00f000f0, bias), sixteenth, high);
    a[2] = f16x2_sub(and_or(word >> 8, 0x000f000f, bias), low);
    a[3] = f16x2_fma(and_or(word >> 8, 0x00f000f0, bias), sixteenth, high);
}

// ---- clusters (from sm_90 on) ----

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Comes to the cluster's barrier; this says nothing of what was written before. Waits there for all
// threads of the cluster.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
// Both; and what any of them has written is there for all. That is slow: the fence in it is one of
// the whole memory.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// A barrier in shared memory (8 bytes) whose phase ends after `arrivals` arrivals and all announced
// bytes.
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to bulk copies and to the other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives and announces bytes that copies or other blocks will bring.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Waits for the end of the phase of this parity.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n.reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n}\n"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}

// Gives 4, 8 or 16 bytes to block `rank` of the cluster, which must have begun: into its shared
// memory, at the same place as here. They count at its barrier, which is at the same place as here,
// and no fence is needed.
__device__ __forceinline__ void give_4(u32 shared, u32 barrier, u32 rank, float v) {
    asm volatile("{\n.reg .b32 at, there;\nmapa.shared::cluster.u32 at, %0, %2;\n"
                 "mapa.shared::cluster.u32 there, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [at], %3, "
                 "[there];\n}\n" ::"r"(shared),
                 "r"(barrier), "r"(rank), "f"(v)
                 : "memory");
}
__device__ __forceinline__ void give_8(u32 shared, u32 barrier, u32 rank, float2 v) {
    asm volatile("{\n.reg .b32 at, there;\nmapa.shared::cluster.u32 at, %0, %2;\n"
                 "mapa.shared::cluster.u32 there, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [at], {%3, %4}, "
                 "[there];\n}\n" ::"r"(shared),
                 "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y)
                 : "memory");
}
__device__ __forceinline__ void give_16(u32 shared, u32 barrier, u32 rank, float4 v) {
    asm volatile("{\n.reg .b32 at, there;\nmapa.shared::cluster.u32 at, %0, %2;\n"
                 "mapa.shared::cluster.u32 there, %1, %2;\n"
                 "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [at], "
                 "{%3, %4, %5, %6}, [there];\n}\n" ::"r"(shared),
                 "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

// ---- sm_90a: bulk copies, barriers of transactions, warpgroup matrix instructions ----

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TC_HOPPER 1

// Arrives at a barrier of this block.
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the barrier at the same place in block `rank` of the cluster.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
    asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n}\n" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

// Starts a copy from global to shared memory (16-byte aligned, a multiple of 16 bytes); its bytes
// count at the barrier.
__device__ __forceinline__ void copy_bulk(u32 shared, const void *global, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
                 "[%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}

// The same into every block of the cluster whose bit is set, at the same place, counting at the
// barrier at the same place.
__device__ __forceinline__ void copy_bulk_multicast(u32 shared, const void *global, u32 bytes,
                                                    u32 barrier, u16 blocks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier), "h"(blocks)
                 : "memory");
}

// Arrives at the barrier when all copies that this thread started with copy_async_16 are complete.
__device__ __forceinline__ void copy_async_arrive(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// True in one lane of the warp, and the compiler knows that it is one: bulk copies by lanes of
// which it does not know that run in a loop of some 60 cycles each.
__device__ __forceinline__ bool elect_one() {
    u32 one;
    asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\nselp.u32 %0, 1, 0, one;\n}\n"
                 : "=r"(one));
    return one != 0;
}

// Changes the registers of this warpgroup's threads.
template <int count> __device__ __forceinline__ void registers_up_to() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count> __device__ __forceinline__ void registers_down_to() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

// Before a wgmma: registers written by other instructions are complete.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `pending` groups are unfinished.
template <int pending> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// After wgmma_wait: nothing that reads the results may move before it.
template <int N> __device__ __forceinline__ void keep_all(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The descriptor of a B operand: rows of 128 bytes (64 binary16 along K) in groups of eight,
// 1024-byte aligned, 16-byte chunks swizzled: chunk c of row r lies at c ^ (r & 7). 16 columns on:
// + 2.
__device__ __forceinline__ u64 wgmma_operand(u32 shared) {
    return 1ull << 62 | (u64)(1024 >> 4) << 32 | 1ull << 16 | (shared & 0x3ffff) >> 4;
}

#define TC_ACC_8(d, i)                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),      \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define TC_ACC_32(d, i) TC_ACC_8(d, i), TC_ACC_8(d, i + 8), TC_ACC_8(d, i + 16), TC_ACC_8(d, i + 24)

// d += a * b for a warpgroup: a is 64x16, 16 rows per warp in the registers
// of mma_16x8x16; b is 16 x N in shared memory. d[4 j] to d[4 j + 3] are the four numbers that
// mma_16x8x16 gives for columns 8 j to 8 j + 7. Asynchronous: a and d are in use until wgmma_wait.
// ADD 0: d = a * b.
template <int ADD = 1>
__device__ __forceinline__ void wgmma_64x16x16(float (&d)[8], const u32 *a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11}, %12, %13, 1, 1, 0;"
                 : TC_ACC_8(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD));
}

template <int ADD = 1>
__device__ __forceinline__ void wgmma_64x64x16(float (&d)[32], const u32 *a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, %37, 1, 1, 0;"
                 : TC_ACC_32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ADD));
}

__device__ __forceinline__ void wgmma_64x128x16(float (&d)[64], const u32 *a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
                 : TC_ACC_32(d, 0), TC_ACC_32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_64x256x16(float (&d)[128], const u32 *a, u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "
                 "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "
                 "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
                 "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "
                 "%119, %120, %121, %122, %123, %124, %125, %126, %127}, "
                 "{%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
                 : TC_ACC_32(d, 0), TC_ACC_32(d, 32), TC_ACC_32(d, 64), TC_ACC_32(d, 96)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif // TC_HOPPER

#endif // TC_PRELUDE
