// Runs one CUDA kernel's text on a CPU: every thread of a block is a fiber, and the instructions written in PTX are the
// functions below, from the fragment tables of the PTX ISA. Strict where hardware is lenient: copies arrive at the wait
// that asks for them and not before, their targets hold NaNs until then, shared memory begins as NaNs, threads run in
// random order, and buffers end at a page that cannot be touched.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <type_traits>
#include <utility>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __launch_bounds__(n)
#define __grid_constant__
#undef __restrict__
#define __restrict__

// The text defines these itself, `uint64_t` as another type of 64 bits.
#define uint32_t emu_text_uint32_t
#define uint8_t emu_text_uint8_t
#define uint16_t emu_text_uint16_t
#define uint64_t emu_text_uint64_t
#define int8_t emu_text_int8_t
#define int16_t emu_text_int16_t
#define int32_t emu_text_int32_t
#define int64_t emu_text_int64_t

namespace emu {

typedef unsigned int u32;
typedef unsigned long long u64;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::exit(3);
}

struct Dim { unsigned x, y, z; };
struct Copy { char* to; const char* from; u32 size, bytes; };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    int operation = 0;
    u64 in[24], out[64];
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
};

// Threads that act together: 32 of a warp, 128 of a warpgroup, all of a block.
struct Party { u32 arrived = 0; u64 generation = 0; };

constexpr u32 SHARED = 232448;
alignas(1024) inline char shared[SHARED];
inline std::vector<Fiber> fibers;
inline std::vector<Party> parties;
inline u32 current, threads;
inline ucontext_t scheduler;
inline u64 steps;

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

// Waits for the `size` threads of this one's party; the last to come runs `act` on the first thread's number.
template <class Act> void together(int operation, u32 size, u32 offset, Act act) {
    u32 first = current / size * size;
    Party& party = parties[offset + current / size];
    u64 generation = party.generation;
    fibers[current].operation = operation;
    steps++;
    if (++party.arrived == size) {
        for (u32 i = first; i < first + size; i++)
            if (fibers[i].operation != operation || fibers[i].done) fail("threads that act together have parted");
        act(first);
        party.arrived = 0;
        party.generation++;
    } else {
        while (party.generation == generation) yield();
    }
}
// Where parties of warps, warpgroups and the block begin.
constexpr u32 WARPS = 0, GROUPS = 32, BLOCK = 40;

inline u32 low(u64 v) { return (u32)v; }
inline float as_float(u32 bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline u32 as_bits(float f) { u32 bits; std::memcpy(&bits, &f, 4); return bits; }

inline u64 bits(u32 v) { return v; }
inline u64 bits(u64 v) { return v; }
inline u64 bits(float v) { return as_bits(v); }
template <class T> u64 bits(T* v) { return (u64)v; }
inline void set(u32& to, u64 v) { to = low(v); }
inline void set(float& to, u64 v) { to = as_float(low(v)); }

enum Kind { BF16, F16, TF32 };

inline double half(Kind kind, u32 bits) {
    if (kind == BF16) return as_float(bits << 16);
    u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double magnitude = exponent == 0 ? mantissa / 16777216.0
        : exponent == 31 ? (mantissa ? __builtin_nan("") : __builtin_inf())
        : (1024 + mantissa) * __builtin_ldexp(1.0, (int)exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

inline char* at(u64 address, u32 size, u32 align) {
    if (address + size > SHARED) fail("an address outside shared memory");
    if (address % align) fail("an address in shared memory that is not aligned");
    return shared + address;
}

// --- memory ---

inline void shared_address(const u64* in, u64* out) {
    u64 offset = in[0] - (u64)shared;
    if (offset >= SHARED) fail("a pointer outside shared memory");
    out[0] = offset;
}

inline void copy(const u64* in, u32 size) {
    char* to = at(low(in[0]), size, size);
    u32 count = low(in[2]);
    if (count != 0 && count != size) fail("a copy of part of its size");
    if (count && in[1] % size) fail("a copy from an address that is not aligned");
    std::memset(to, 0xff, size);
    fibers[current].open.push_back({to, (const char*)in[1], size, count});
}

inline void commit() {
    Fiber& fiber = fibers[current];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

inline void wait(u32 pending) {
    Fiber& fiber = fibers[current];
    while (fiber.groups.size() > pending) {
        for (const Copy& c : fiber.groups.front()) {
            std::memset(c.to, 0, c.size);
            std::memcpy(c.to, c.from, c.bytes);
        }
        fiber.groups.pop_front();
    }
}

inline void load(const u64* in, u64* out, u32 words) {
    const char* from = at(low(in[0]), 4 * words, 4 * words);
    for (u32 i = 0; i < words; i++) { u32 w; std::memcpy(&w, from + 4 * i, 4); out[i] = w; }
}

inline void load_half(const u64* in, u64* out) {
    unsigned short h;
    std::memcpy(&h, at(low(in[0]), 2, 2), 2);
    out[0] = h;
}

// --- matrices ---

inline void ldmatrix(const u64* in, u64* out, bool transpose) {
    Fiber& fiber = fibers[current];
    fiber.in[0] = in[0];
    together(transpose ? 2 : 1, 32, WARPS, [&](u32 first) {
        for (u32 matrix = 0; matrix < 4; matrix++) {
            unsigned short m[8][8];
            for (u32 row = 0; row < 8; row++)
                std::memcpy(m[row], at(low(fibers[first + matrix * 8 + row].in[0]), 16, 16), 16);
            for (u32 lane = 0; lane < 32; lane++) {
                u32 r = lane / 4, c = lane % 4 * 2;
                u32 one = transpose ? m[c][r] : m[r][c], two = transpose ? m[c + 1][r] : m[r][c + 1];
                fibers[first + lane].out[matrix] = one | two << 16;
            }
        }
    });
    std::memcpy(out, fiber.out, 4 * sizeof(u64));
}

inline void round_tf32(const u64* in, u64* out) {
    u32 b = low(in[0]);
    out[0] = (b & 0x7f800000) == 0x7f800000 ? b : (b + 0x1000) & ~0x1fffu;
}

inline double tf32(u32 bits) {
    if (bits & 0x1fff && (bits & 0x7f800000) != 0x7f800000) fail("a tf32 operand that was not rounded");
    return as_float(bits);
}

// Operands in order: A, B, C.
template <Kind kind> void mma(const u64* in, u64* out) {
    Fiber& fiber = fibers[current];
    std::memcpy(fiber.in, in, 10 * sizeof(u64));
    together(10 + kind, 32, WARPS, [&](u32 first) {
        constexpr u32 K = kind == TF32 ? 8 : 16;
        double a[16][16], b[16][8];
        for (u32 lane = 0; lane < 32; lane++) {
            const u64* v = fibers[first + lane].in;
            u32 group = lane >> 2, thread = lane % 4;
            if (kind == TF32) {
                for (u32 i = 0; i < 4; i++) a[group + (i % 2) * 8][thread + (i / 2) * 4] = tf32(low(v[i]));
                for (u32 i = 0; i < 2; i++) b[thread + i * 4][group] = tf32(low(v[4 + i]));
            } else {
                for (u32 i = 0; i < 8; i++) {
                    u32 row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
                    u32 col = thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                    a[row][col] = half(kind, low(v[i / 2]) >> 16 * (i % 2) & 0xffff);
                }
                for (u32 i = 0; i < 4; i++) {
                    u32 row = thread * 2 + (i & 1) + (i >= 2 ? 8 : 0);
                    b[row][group] = half(kind, low(v[4 + i / 2]) >> 16 * (i % 2) & 0xffff);
                }
            }
        }
        for (u32 lane = 0; lane < 32; lane++)
            for (u32 i = 0; i < 4; i++) {
                u32 row = (lane >> 2) + (i >= 2 ? 8 : 0), col = lane % 4 * 2 + (i & 1);
                double sum = as_float(low(fibers[first + lane].in[6 + i]));
                for (u32 k = 0; k < K; k++) sum += a[row][k] * b[k][col];
                fibers[first + lane].out[i] = as_bits((float)sum);
            }
    });
    std::memcpy(out, fiber.out, 4 * sizeof(u64));
}

// Rows 0 to 16 of a two-of-four A, 32 columns, from a warp's registers and metadata; `keep` says where A has elements.
inline void expand(Kind kind, u32 first, u32 registers, u32 metadata, u32 selector, double a[16][32], bool keep[16][32]) {
    for (u32 row = 0; row < 16; row++) for (u32 k = 0; k < 32; k++) { a[row][k] = 0; keep[row][k] = false; }
    for (u32 lane = 0; lane < 32; lane++) {
        u32 group = lane >> 2, thread = lane % 4;
        for (u32 i = 0; i < 8; i++) {
            u32 row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
            u32 chunk = thread + (i >= 4 ? 4 : 0);
            // Columns 0 to 16 are described by the first of the two selected lanes of the row's four, the others by
            // the second; the row eight below in the upper half of the word.
            u32 word = low(fibers[first + group * 4 + selector * 2 + chunk / 4].in[metadata]);
            u32 pair = word >> ((row >= 8 ? 16 : 0) + chunk % 4 * 4) & 15;
            if ((pair & 3) >= pair >> 2) fail("metadata that does not ascend");
            u32 col = chunk * 4 + (i % 2 ? pair >> 2 : pair & 3);
            a[row][col] = half(kind, low(fibers[first + lane].in[registers + i / 2]) >> 16 * (i % 2) & 0xffff);
            keep[row][col] = true;
        }
    }
}

// Operands in order: A, B, C, metadata.
template <Kind kind, u32 selector> void mma_sparse(const u64* in, u64* out) {
    Fiber& fiber = fibers[current];
    std::memcpy(fiber.in, in, 13 * sizeof(u64));
    together(20 + kind * 2 + selector, 32, WARPS, [&](u32 first) {
        double a[16][32], b[32][8];
        bool keep[16][32];
        expand(kind, first, 0, 12, selector, a, keep);
        for (u32 lane = 0; lane < 32; lane++)
            for (u32 i = 0; i < 8; i++)
                b[lane % 4 * 2 + (i & 1) + i / 2 * 8][lane >> 2] =
                    half(kind, low(fibers[first + lane].in[4 + i / 2]) >> 16 * (i % 2) & 0xffff);
        for (u32 lane = 0; lane < 32; lane++)
            for (u32 i = 0; i < 4; i++) {
                u32 row = (lane >> 2) + (i >= 2 ? 8 : 0), col = lane % 4 * 2 + (i & 1);
                double sum = as_float(low(fibers[first + lane].in[8 + i]));
                for (u32 k = 0; k < 32; k++) if (keep[row][k]) sum += a[row][k] * b[k][col];
                fibers[first + lane].out[i] = as_bits((float)sum);
            }
    });
    std::memcpy(out, fiber.out, 4 * sizeof(u64));
}

// Element (n, k) of a K-major B in the 128-byte swizzle.
inline double described(Kind kind, u64 descriptor, u32 n, u32 k) {
    if (descriptor >> 62 != 1) fail("a descriptor without the 128-byte swizzle");
    u64 start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    u64 address = start + n / 8 * stride + n % 8 * 128 + k * 2;
    address ^= (address >> 7 & 7) << 4;
    unsigned short h;
    std::memcpy(&h, at(address, 2, 2), 2);
    return half(kind, h);
}

// Four instructions, 16 deep each, the first of which begins from zero. Operands: A four times, descriptor.
template <Kind kind> void wgmma(const u64* in, u64* out) {
    Fiber& fiber = fibers[current];
    std::memcpy(fiber.in, in, 17 * sizeof(u64));
    together(30 + kind, 128, GROUPS, [&](u32 first) {
        for (u32 warp = 0; warp < 4; warp++) {
            u32 base = first + warp * 32;
            static double a[16][64], b[64][128];
            for (u32 lane = 0; lane < 32; lane++)
                for (u32 i = 0; i < 32; i++) {
                    u32 step = i / 8, e = i % 8;
                    u32 row = (lane >> 2) + (e / 2 % 2) * 8, col = step * 16 + lane % 4 * 2 + e % 2 + e / 4 * 8;
                    a[row][col] = half(kind, low(fibers[base + lane].in[i / 2]) >> 16 * (i % 2) & 0xffff);
                }
            for (u32 n = 0; n < 128; n++)
                for (u32 k = 0; k < 64; k++) {
                    u64 descriptor = fibers[first].in[16] + k / 16 * 2;
                    b[k][n] = described(kind, descriptor, n, k % 16);
                }
            for (u32 lane = 0; lane < 32; lane++)
                for (u32 i = 0; i < 64; i++) {
                    u32 row = (lane >> 2) + (i / 2 % 2) * 8, col = i / 4 * 8 + lane % 4 * 2 + i % 2;
                    double sum = 0;
                    for (u32 k = 0; k < 64; k++) sum += a[row][k] * b[k][col];
                    fibers[base + lane].out[i] = as_bits((float)sum);
                }
        }
    });
    std::memcpy(out, fiber.out, 64 * sizeof(u64));
}

// Two instructions, 32 deep each, with selectors 0 and 1. Operands: A twice, metadata, descriptor.
template <Kind kind> void wgmma_sparse(const u64* in, u64* out) {
    Fiber& fiber = fibers[current];
    std::memcpy(fiber.in, in, 10 * sizeof(u64));
    together(40 + kind, 128, GROUPS, [&](u32 first) {
        for (u32 warp = 0; warp < 4; warp++) {
            u32 base = first + warp * 32;
            static double a[2][16][32], b[64][128];
            static bool keep[2][16][32];
            for (u32 step = 0; step < 2; step++) expand(kind, base, step * 4, 8, step, a[step], keep[step]);
            for (u32 n = 0; n < 128; n++)
                for (u32 k = 0; k < 64; k++)
                    b[k][n] = described(kind, fibers[first].in[9] + k / 32 * 4, n, k % 32);
            for (u32 lane = 0; lane < 32; lane++)
                for (u32 i = 0; i < 64; i++) {
                    u32 row = (lane >> 2) + (i / 2 % 2) * 8, col = i / 4 * 8 + lane % 4 * 2 + i % 2;
                    double sum = 0;
                    for (u32 k = 0; k < 64; k++)
                        if (keep[k / 32][row][k % 32]) sum += a[k / 32][row][k % 32] * b[k][col];
                    fibers[base + lane].out[i] = as_bits((float)sum);
                }
        }
    });
    std::memcpy(out, fiber.out, 64 * sizeof(u64));
}

// --- what the text calls by name ---

inline u32 shuffle(int operation, u32 value, u32 lane) {
    Fiber& fiber = fibers[current];
    fiber.in[0] = value;
    fiber.in[1] = lane;
    together(operation, 32, WARPS, [&](u32 first) {
        for (u32 i = 0; i < 32; i++) {
            u32 from = operation == 50 ? low(fibers[first + i].in[1]) % 32 : i - low(fibers[first + i].in[1]);
            fibers[first + i].out[0] = fibers[first + (from < 32 ? from : i)].in[0];
        }
    });
    return low(fiber.out[0]);
}

}  // namespace emu

inline emu::Dim threadIdx, blockIdx, blockDim, gridDim;

constexpr int warpSize = 32;
inline unsigned __activemask() { return ~0u; }
inline unsigned __shfl_sync(unsigned, unsigned value, unsigned lane, int = 32) { return emu::shuffle(50, value, lane); }
inline unsigned __shfl_up_sync(unsigned, unsigned value, unsigned by, int = 32) { return emu::shuffle(51, value, by); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline void __syncthreads() { emu::together(60, emu::threads, emu::BLOCK, [](emu::u32) {}); }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

namespace emu {

inline void (*body)();

inline void enter() {
    body();
    fibers[current].done = true;
    swapcontext(&fibers[current].context, &scheduler);
}

inline void run_block(unsigned long long& random) {
    std::memset(shared, 0xff, SHARED);
    parties.assign(BLOCK + 1, Party());
    for (u32 i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.done = false;
        fiber.open.clear();
        fiber.groups.clear();
        fiber.stack.resize(1 << 17);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    std::vector<u32> order(threads);
    for (u32 i = 0; i < threads; i++) order[i] = i;
    for (u32 left = threads; left;) {
        u64 before = steps;
        u32 finished = 0;
        for (u32 i = threads - 1; i > 0; i--) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(order[i], order[(random >> 33) % (i + 1)]);
        }
        for (u32 i : order) {
            if (fibers[i].done) continue;
            current = i;
            threadIdx = {i, 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
            finished += fibers[i].done;
        }
        left -= finished;
        if (steps == before && !finished) fail("threads wait for each other for ever");
    }
}

inline void read(void* to, size_t size) {
    if (std::fread(to, 1, size, stdin) != size) fail("the job ends early");
}

inline void* buffers[16];

template <size_t I, class T, class Info> T argument(const Info& info) {
    if constexpr (std::is_pointer_v<T>) return (T)buffers[I];
    else return info;
}

template <size_t... I, class... A, class Info>
void call(void (*kernel)(A...), std::index_sequence<I...>, const Info& info) {
    kernel(argument<I, A>(info)...);
}

// A job from standard input: threads, grid, seed, scalars, and buffers; the buffers afterwards to standard output.
template <class Info, class... A> int job(void (*kernel)(A...)) {
    u32 head[6];
    read(head, sizeof head);
    threads = head[0];
    blockDim = {threads, 1, 1};
    gridDim = {head[1], head[2], head[3]};
    u64 random = head[4];
    static Info info;
    if (head[5] * 4 > sizeof info) fail("more scalars than the kernel has");
    read(&info, head[5] * 4);
    constexpr u32 count = sizeof...(A) - 1;
    u32 sizes[count];
    for (u32 i = 0; i < count; i++) {
        read(&sizes[i], 4);
        size_t room = (sizes[i] + 4096) / 4096 * 4096;
        char* block = (char*)mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED || mprotect(block + room, 4096, PROT_NONE)) fail("no memory");
        buffers[i] = block + (room - (sizes[i] + 15) / 16 * 16);
        read(buffers[i], sizes[i]);
    }
    static void (*chosen)(A...);
    chosen = kernel;
    body = [] { call(chosen, std::index_sequence_for<A...>(), info); };
    fibers.resize(threads);
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                run_block(random);
            }
    for (u32 i = 0; i < count; i++) std::fwrite(buffers[i], 1, sizes[i], stdout);
    return 0;
}

}  // namespace emu
