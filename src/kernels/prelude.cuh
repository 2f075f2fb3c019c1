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

__device__ __forceinline__ u32 shared_address(const void *p) {
    return (u32)__cvta_generic_to_shared(p);
}

// A value that the compiler must keep: it prefers to compute addresses anew in every iteration.
__device__ __forceinline__ u32 keep(u32 v) {
    asm volatile("" : "+r"(v));
    return v;
}

// Brings the line of global memory into L2.
__device__ __forceinline__ void prefetch_l2(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Starts a copy of 16 bytes from global to shared memory (both 16-byte aligned), past L1.
__device__ __forceinline__ void copy_async_16(u32 shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

// The same for 8 bytes (8-byte aligned; goes through L1, which has no 8-byte bypass).
__device__ __forceinline__ void copy_async_8(u32 shared, const void *global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
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

// Lets the next kernel of the stream start: it may load what depends on nothing (weights) while this
// one works. Called after wait_for_previous, so that never more than two kernels are resident: with
// three, blocks of one kernel pile up on the SMs that the first frees and the others stay idle.
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

// d += a * b in whole numbers: a is 16x32 of u8, b 32x8 of i8. Lane l holds of a: row l/4 and columns
// 4*(l%4) + {0..3} in a[0], row l/4 + 8 in a[1], the columns 16 further on in a[2] and a[3]; of b:
// column l/4 and rows 4*(l%4) + {0..3} in b0, 16 further on in b1; d as above.
__device__ __forceinline__ void mma_16x8x32(i32 d[4], const u32 a[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

// One word of a W4 unit (docs/format.md) is this lane's part of a 16x16 A operand of mma: rows r and
// r + 8, four neighbouring columns. Gives a[] with the exact numbers q - zero: a[0] row r, columns
// 0 and 1; a[1] row r + 8, the same columns; a[2] and a[3] the columns 2 and 3. A binary16 with the
// bits 0x6400 | n is 1024 + n, so one and-or makes two numbers and one subtraction or fma places
// them. low: 1024 + zero of row r, twice; high: -(64 + zero of row r + 8), twice.
__device__ __forceinline__ void w4_to_f16x2(u32 word, u32 low, u32 high, u32 a[4]) {
    const u32 bias = 0x64006400, sixteenth = 0x2c002c00; // 1024 and 1/16
    a[0] = f16x2_sub(and_or(word, 0x000f000f, bias), low);
    a[1] = f16x2_fma(and_or(word, 0x00f000f0, bias), sixteenth, high);
    a[2] = f16x2_sub(and_or(word >> 8, 0x000f000f, bias), low);
    a[3] = f16x2_fma(and_or(word >> 8, 0x00f000f0, bias), sixteenth, high);
}

#endif // TC_PRELUDE
