// Runs the source of a CUDA kernel on a CPU: the threads of a block as coroutines, one block after the other.
//
// What the hardware does for several threads at once (matrix products, `ldmatrix`, shuffles, barriers) waits for all of
// them and checks that they ask for the same; fragments are laid out as the PTX manual has them (9.7.14). A warp goes on
// until the block must wait for another. Copies by `cp.async` arrive as late as they may. Shared memory holds NaN before
// a block begins.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

using namespace std;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __align__(n)

struct Index {
  int x;
};

namespace emulated {

constexpr int STACK = 1 << 18, THREADS = 1024;
alignas(128) static int shared[57 * 1024];

struct Group {  // threads that act together
  int arrived = 0, size = 0;
  unsigned turn = 0;
  const char* what = nullptr;
  void* of[THREADS];
};

struct Copy {
  void* to;
  char data[16];
};

struct Thread {
  void* stack_pointer;
  Index index;
  bool done, waiting;  // for the whole block
  unsigned turn;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

static std::vector<Thread> threads;
static std::vector<Group> warps;
static Group block;
static Index block_index;
static Thread* now;
static void* scheduler;
static void (*body)(const long long* const*);
static const long long* const* arguments;

extern "C" void emulated_switch(void** from, void* to);
asm(R"(
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

static void yield() {
  Thread* self = now;
  emulated_switch(&self->stack_pointer, scheduler);
}

static void fail(const char* what) {
  fprintf(stderr, "emulated kernel: %s\n", what);
  abort();
}

static void begin() {
  body(arguments);
  for (auto& group : now->groups)
    if (!group.empty()) fail("a copy was never waited for");
  now->done = true;
  yield();
  fail("a thread went on after its end");
}

template <typename T, typename F>
static void together(Group& group, int index, const char* what, T& mine, F combine) {
  if (group.arrived && group.what != what) fail("threads that act together differ in what they do");
  group.what = what;
  group.of[index] = &mine;
  unsigned turn = group.turn;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    combine((T**)group.of);
    ++group.turn;
  } else {
    now->waiting = &group == &block;
    now->turn = turn;
    Thread* self = now;
    while (group.turn == turn) yield();
    self->waiting = false;
  }
}

static Group& warp() { return warps[now->index.x / 32]; }
static int lane() { return now->index.x % 32; }

// Starts blocks of a kernel; `backwards` runs their threads in the other order.
static void launch(void (*kernel)(const long long* const*), int blocks, int count, const long long* const* given,
                   bool backwards) {
  body = kernel;
  arguments = given;
  auto* stacks = (char*)malloc((size_t)count * STACK);
  for (block_index.x = 0; block_index.x < blocks; ++block_index.x) {
    memset(shared, 0xff, sizeof shared);
    threads.assign(count, Thread());
    warps.assign((count + 31) / 32, Group());
    for (auto& w : warps) w.size = 32;
    block = Group();
    block.size = count;
    for (int n = 0; n < count; ++n) {
      auto top = (uintptr_t)(stacks + (size_t)(n + 1) * STACK) & ~(uintptr_t)63;
      auto* frame = (void**)(top - 64);
      frame[0] = (void*)begin;
      frame[1] = nullptr;
      threads[n].stack_pointer = frame - 6;
      threads[n].index.x = n;
      threads[n].done = threads[n].waiting = false;
    }
    for (int left = count; left;) {
      for (int first = 0; first < count; first += 32) {  // each warp as far as it comes without the others
        for (bool moved = true; moved;) {
          moved = false;
          for (int n = first; n < first + 32; ++n) {
            now = &threads[backwards ? count - 1 - n : n];
            if (now->done || (now->waiting && now->turn == block.turn)) continue;
            emulated_switch(&scheduler, now->stack_pointer);
            left -= now->done;
            moved = true;
          }
        }
      }
    }
  }
  free(stacks);
}

static float from_bf16(unsigned x) {
  unsigned bits = x << 16;
  float r;
  memcpy(&r, &bits, 4);
  return r;
}
static float from_f16(unsigned x) {
  auto bits = (unsigned short)x;
  _Float16 r;
  memcpy(&r, &bits, 2);
  return r;
}
static float from_tf32(unsigned x) {
  x &= ~0x1fffu;
  float r;
  memcpy(&r, &x, 4);
  return r;
}
static unsigned to_bf16(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static unsigned to_f16(float x) {
  auto narrow = (_Float16)x;
  unsigned short bits;
  memcpy(&bits, &narrow, 2);
  return bits;
}

struct Product {
  float* c;
  const unsigned *a, *b;
};

// m16n8k16 of 16-bit elements: a0 (g, 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8); b0 (2t, g), b1 (2t + 8, g).
template <typename F>
static void multiply_halves(float* c, const unsigned* a, const unsigned* b, const char* what, F from) {
  Product mine{c, a, b};
  together(warp(), lane(), what, mine, [&](Product** all) {
    float A[16][16], B[16][8], C[16][8];
    for (int n = 0; n < 32; ++n) {
      int g = n / 4, t = n % 4;
      for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half)
          A[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = from(all[n]->a[i] >> 16 * half & 0xffff);
      for (int i = 0; i < 2; ++i)
        for (int half = 0; half < 2; ++half) B[2 * t + 8 * i + half][g] = from(all[n]->b[i] >> 16 * half & 0xffff);
      for (int i = 0; i < 4; ++i) C[g + 8 * (i / 2)][2 * t + i % 2] = all[n]->c[i];
    }
    for (int r = 0; r < 16; ++r)
      for (int e = 0; e < 8; ++e)
        for (int k = 0; k < 16; ++k) C[r][e] += A[r][k] * B[k][e];
    for (int n = 0; n < 32; ++n)
      for (int i = 0; i < 4; ++i) all[n]->c[i] = C[n / 4 + 8 * (i / 2)][2 * (n % 4) + i % 2];
  });
}

}  // namespace emulated

#define threadIdx (emulated::now->index)
#define blockIdx emulated::block_index

static void __syncthreads() {
  int nothing = 0;
  emulated::together(emulated::block, threadIdx.x, "barrier", nothing, [](int**) {});
}

static void attnc_copy(void* to, const void* from, int bytes) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16) emulated::fail("a copy of 16 bytes is not aligned");
  if (bytes != 0 && bytes != 16) emulated::fail("a copy of neither 0 nor 16 bytes");
  emulated::Copy copy{to, {}};
  memcpy(copy.data, from, bytes);
  memset(to, 0xff, 16);
  emulated::now->open.push_back(copy);
}
static void attnc_commit() {
  emulated::now->groups.push_back(std::move(emulated::now->open));
  emulated::now->open.clear();
}
static void attnc_arrive(size_t but) {
  auto& groups = emulated::now->groups;
  for (; groups.size() > but; groups.pop_front())
    for (auto& copy : groups.front()) memcpy(copy.to, copy.data, 16);
}
static void attnc_wait() { attnc_arrive(1); }
static void attnc_wait_all() { attnc_arrive(0); }

struct Load {
  unsigned* r;
  const void* p;
};
static void attnc_load(unsigned* r, const void* p) {
  if ((uintptr_t)p % 16) emulated::fail("a row of a matrix is not aligned");
  Load mine{r, p};
  emulated::together(emulated::warp(), emulated::lane(), "load", mine, [](Load** all) {
    for (int n = 0; n < 32; ++n)
      for (int m = 0; m < 4; ++m) {
        auto* row = (const unsigned short*)all[8 * m + n / 4]->p;
        all[n]->r[m] = row[2 * (n % 4)] | (unsigned)row[2 * (n % 4) + 1] << 16;
      }
  });
}
static void attnc_load_transposed(unsigned* r, const void* p) {
  if ((uintptr_t)p % 16) emulated::fail("a row of a matrix is not aligned");
  Load mine{r, p};
  emulated::together(emulated::warp(), emulated::lane(), "transposed load", mine, [](Load** all) {
    for (int n = 0; n < 32; ++n)
      for (int m = 0; m < 4; ++m) {
        auto* first = (const unsigned short*)all[8 * m + 2 * (n % 4)]->p;
        auto* second = (const unsigned short*)all[8 * m + 2 * (n % 4) + 1]->p;
        all[n]->r[m] = first[n / 4] | (unsigned)second[n / 4] << 16;
      }
  });
}

static void attnc_multiply_bf16(float* c, const unsigned* a, const unsigned* b) {
  emulated::multiply_halves(c, a, b, "product of bf16", emulated::from_bf16);
}
static void attnc_multiply_f16(float* c, const unsigned* a, const unsigned* b) {
  emulated::multiply_halves(c, a, b, "product of f16", emulated::from_f16);
}
// m16n8k8: a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8, t + 4); b0 (t, g), b1 (t + 4, g).
static void attnc_multiply_tf32(float* c, const unsigned* a, const unsigned* b) {
  emulated::Product mine{c, a, b};
  emulated::together(emulated::warp(), emulated::lane(), "product of tf32", mine, [](emulated::Product** all) {
    float A[16][8], B[8][8], C[16][8];
    for (int n = 0; n < 32; ++n) {
      int g = n / 4, t = n % 4;
      for (int i = 0; i < 4; ++i) A[g + 8 * (i % 2)][t + 4 * (i / 2)] = emulated::from_tf32(all[n]->a[i]);
      for (int i = 0; i < 2; ++i) B[t + 4 * i][g] = emulated::from_tf32(all[n]->b[i]);
      for (int i = 0; i < 4; ++i) C[g + 8 * (i / 2)][2 * t + i % 2] = all[n]->c[i];
    }
    for (int r = 0; r < 16; ++r)
      for (int e = 0; e < 8; ++e)
        for (int k = 0; k < 8; ++k) C[r][e] += A[r][k] * B[k][e];
    for (int n = 0; n < 32; ++n)
      for (int i = 0; i < 4; ++i) all[n]->c[i] = C[n / 4 + 8 * (i / 2)][2 * (n % 4) + i % 2];
  });
}
static unsigned attnc_tf32(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return x != x || isinf(x) ? bits : (bits + 0x1000) & ~0x1fffu;
}

static unsigned attnc_pack_bf16(float low, float high) { return emulated::to_bf16(low) | emulated::to_bf16(high) << 16; }
static unsigned attnc_pack_f16(float low, float high) { return emulated::to_f16(low) | emulated::to_f16(high) << 16; }
static float attnc_from_f16(unsigned short x) { return emulated::from_f16(x); }

template <typename T>
static T __shfl_xor_sync(unsigned, T x, int mask) {
  struct Mine {
    T x, y;
    int from;
  } mine{x, x, emulated::lane() ^ mask};
  emulated::together(emulated::warp(), emulated::lane(), "shuffle", mine, [](Mine** all) {
    for (int n = 0; n < 32; ++n) all[n]->y = all[all[n]->from]->x;
  });
  return mine.y;
}
static int __any_sync(unsigned, int x) {
  emulated::together(emulated::warp(), emulated::lane(), "any of a warp", x, [](int** all) {
    int any = 0;
    for (int n = 0; n < 32; ++n) any |= *all[n] != 0;
    for (int n = 0; n < 32; ++n) *all[n] = any;
  });
  return x;
}
static int __syncthreads_or(int x) {
  emulated::together(emulated::block, threadIdx.x, "any", x, [](int** all) {
    int any = 0;
    for (int n = 0; n < emulated::block.size; ++n) any |= *all[n] != 0;
    for (int n = 0; n < emulated::block.size; ++n) *all[n] = any;
  });
  return x;
}
static int __syncthreads_and(int x) {
  emulated::together(emulated::block, threadIdx.x, "every", x, [](int** all) {
    int every = 1;
    for (int n = 0; n < emulated::block.size; ++n) every &= *all[n] != 0;
    for (int n = 0; n < emulated::block.size; ++n) *all[n] = every;
  });
  return x;
}

static float attnc_exp(float x) { return expf(x); }
static float attnc_tanh(float x) { return tanhf(x); }
static float __fdividef(float x, float y) { return x / y; }
static float __uint_as_float(unsigned x) {
  float r;
  memcpy(&r, &x, 4);
  return r;
}
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)
