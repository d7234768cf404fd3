// What TIR has no node for: copies to shared memory that do not wait, matrix products, numbers of 16 bits, functions.
// Fragments of `mma` lie as PTX lays them out: thread 4g + t of a warp holds rows g and g + 8 of a result, and of each
// 8 columns 2t and 2t + 1.

#define ATTNC static __device__ __forceinline__

ATTNC unsigned attnc_shared(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// 16 bytes from global memory, or zeros if `bytes` is 0.
ATTNC void attnc_copy(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(attnc_shared(to)), "l"(from), "r"(bytes) : "memory");
}
ATTNC void attnc_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all copies but those of the last group have arrived.
ATTNC void attnc_wait() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
ATTNC void attnc_wait_all() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// Four matrices of 8 by 8 numbers of 16 bits; thread n names row n % 8 of matrix n / 8.
ATTNC void attnc_load(unsigned* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(attnc_shared(p))
               : "memory");
}
ATTNC void attnc_load_transposed(unsigned* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(attnc_shared(p))
               : "memory");
}

#define ATTNC_MMA(NAME, SHAPE, TYPES)                                                                             \
  ATTNC void NAME(float* c, const unsigned* a, const unsigned* b) {                                               \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPES ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "       \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
  }
ATTNC_MMA(attnc_multiply_bf16, "m16n8k16", "bf16.bf16")
ATTNC_MMA(attnc_multiply_f16, "m16n8k16", "f16.f16")
ATTNC_MMA(attnc_multiply_tf32, "m16n8k8", "tf32.tf32")

ATTNC unsigned attnc_tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// A product of float32, each factor as a sum of two of 11 bits; what is left out is below 2**-22 of it.
ATTNC void attnc_multiply_f32(float* c, const float* a, const float* b) {
  unsigned ah[4], al[4], bh[2], bl[2];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    ah[n] = attnc_tf32(a[n]);
    al[n] = attnc_tf32(a[n] - __uint_as_float(ah[n]));
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    bh[n] = attnc_tf32(b[n]);
    bl[n] = attnc_tf32(b[n] - __uint_as_float(bh[n]));
  }
  attnc_multiply_tf32(c, al, bh);
  attnc_multiply_tf32(c, ah, bl);
  attnc_multiply_tf32(c, ah, bh);
}

// The same for a second factor that 11 bits hold.
ATTNC void attnc_multiply_wide(float* c, const float* a, const float* b) {
  unsigned ah[4], bh[2];
#pragma unroll
  for (int n = 0; n < 4; ++n) ah[n] = attnc_tf32(a[n]);
#pragma unroll
  for (int n = 0; n < 2; ++n) bh[n] = attnc_tf32(b[n]);
  attnc_multiply_tf32(c, ah, bh);
}

// Two numbers as 16 bits each, the first one in the lower half.
ATTNC unsigned attnc_pack_bf16(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
ATTNC unsigned attnc_pack_f16(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
ATTNC float attnc_from_bf16(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
ATTNC float attnc_from_f16(unsigned short x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
ATTNC unsigned short attnc_to_bf16(float x) { return (unsigned short)attnc_pack_bf16(x, 0.0f); }
ATTNC unsigned short attnc_to_f16(float x) { return (unsigned short)attnc_pack_f16(x, 0.0f); }

// Among the four threads of a row.
ATTNC float attnc_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
ATTNC float attnc_row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
ATTNC int attnc_row_any(int x) {
  x |= __shfl_xor_sync(~0u, x, 1);
  return x | __shfl_xor_sync(~0u, x, 2);
}

// Among all threads of a warp, and of a block.
ATTNC int attnc_warp_any(int x) { return __any_sync(~0u, x); }
ATTNC int attnc_any(int x) { return __syncthreads_or(x); }
ATTNC int attnc_every(int x) { return __syncthreads_and(x); }

#ifdef ATTNC_FAST  // as precise as elements of 16 bits are
ATTNC float attnc_exp(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x * 1.44269504088896341f));
  return r;
}
ATTNC float attnc_tanh(float x) {
  float r;
  asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#else
ATTNC float attnc_exp(float x) { return expf(x); }
ATTNC float attnc_tanh(float x) { return tanhf(x); }
#endif
ATTNC float attnc_sigmoid(float x) { return __fdividef(1.0f, 1.0f + attnc_exp(-x)); }
