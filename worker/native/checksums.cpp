#include "checksums.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace keyfold {

namespace {

constexpr uint32_t kCastagnoli = 0x82f63b78, kZlib = 0xedb88320;  // bits reversed

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// Row n advances a byte's remainder over n further bytes (Kounavis and Berry 2005, slicing by 8).
constexpr Tables tables(uint32_t polynomial) {
    Tables made{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ (rest & 1 ? polynomial : 0);
        made[0][byte] = rest;
    }
    for (size_t row = 1; row < 8; ++row)
        for (size_t byte = 0; byte < 256; ++byte)
            made[row][byte] = (made[row - 1][byte] >> 8) ^ made[0][made[row - 1][byte] & 0xff];
    return made;
}

constexpr Tables kCastagnoliTables = tables(kCastagnoli), kZlibTables = tables(kZlib);

uint32_t by_tables(const Tables& of, uint32_t state, const uint8_t* data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        const uint32_t low = state ^ (uint32_t{data[0]} | uint32_t{data[1]} << 8 |
                                      uint32_t{data[2]} << 16 | uint32_t{data[3]} << 24);
        state = of[7][low & 0xff] ^ of[6][low >> 8 & 0xff] ^ of[5][low >> 16 & 0xff] ^
                of[4][low >> 24] ^ of[3][data[4]] ^ of[2][data[5]] ^ of[1][data[6]] ^
                of[0][data[7]];
    }
    for (; size; ++data, --size) state = (state >> 8) ^ of[0][(state ^ *data) & 0xff];
    return state;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) uint32_t crc32c_by_instruction(uint32_t state,
                                                                 const uint8_t* data,
                                                                 size_t size) {
    uint64_t wide = state;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    state = static_cast<uint32_t>(wide);
    for (; size; ++data, --size) state = _mm_crc32_u8(state, *data);
    return state;
}

constexpr size_t kFold = 64;  // bytes folded at a time

// Carry-less multiplication of `state` by x^(8 * distance), and the next 16 bytes added.
__attribute__((target("pclmul,sse4.1"))) inline __m128i folded(__m128i state, __m128i by,
                                                               __m128i next) {
    const __m128i low = _mm_clmulepi64_si128(state, by, 0x00);
    const __m128i high = _mm_clmulepi64_si128(state, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// Folding by carry-less multiplication (Gopal et al. 2009, the constants of its section on the
// reflected CRC-32); `size` is a multiple of 16 and at least kFold.
__attribute__((target("pclmul,sse4.1"))) uint32_t crc32_by_folding(uint32_t state,
                                                                   const uint8_t* data,
                                                                   size_t size) {
    const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
    const __m128i by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const auto* at = reinterpret_cast<const __m128i*>(data);
    __m128i lane[4];
    for (int i = 0; i < 4; ++i) lane[i] = _mm_loadu_si128(at + i);
    lane[0] = _mm_xor_si128(lane[0], _mm_cvtsi32_si128(static_cast<int>(state)));
    for (at += 4, size -= kFold; size >= kFold; at += 4, size -= kFold)
        for (int i = 0; i < 4; ++i) lane[i] = folded(lane[i], by_64, _mm_loadu_si128(at + i));
    __m128i rest = lane[0];
    for (int i = 1; i < 4; ++i) rest = folded(rest, by_16, lane[i]);
    for (; size >= 16; ++at, size -= 16) rest = folded(rest, by_16, _mm_loadu_si128(at));
    // 128 bits to 64, then Barrett's reduction to 32.
    const __m128i low_32 = _mm_setr_epi32(-1, 0, -1, 0);
    rest = _mm_xor_si128(_mm_clmulepi64_si128(rest, by_16, 0x10), _mm_srli_si128(rest, 8));
    const __m128i by_4 = _mm_set_epi64x(0, 0x0163cd6124);
    rest = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(rest, low_32), by_4, 0x00),
                         _mm_srli_si128(rest, 4));
    const __m128i barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(rest, low_32), barrett, 0x10);
    quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, low_32), barrett, 0x00);
    return static_cast<uint32_t>(_mm_extract_epi32(_mm_xor_si128(rest, quotient), 1));
}

#endif

}  // namespace

uint32_t crc32c(const uint8_t* data, size_t size) {
#if defined(__x86_64__)
    static const bool has_instruction = __builtin_cpu_supports("sse4.2");
    if (has_instruction) return ~crc32c_by_instruction(~0u, data, size);
#endif
    return ~by_tables(kCastagnoliTables, ~0u, data, size);
}

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size) {
    uint32_t state = ~crc;
#if defined(__x86_64__)
    static const bool has_instructions =
        __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    if (has_instructions && size >= kFold) {
        const size_t whole = size & ~size_t{15};
        state = crc32_by_folding(state, data, whole);
        data += whole;
        size -= whole;
    }
#endif
    return ~by_tables(kZlibTables, state, data, size);
}

}  // namespace keyfold
