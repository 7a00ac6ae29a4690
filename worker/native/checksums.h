// Checksums: CRC-32C, which Kafka puts over a record batch, and CRC-32 as zlib has it, which a stored
// state carries.
//
// Owns which of the processor's instructions are used: told at run time, tables where there are none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace keyfold {

// CRC-32C (Castagnoli) of some bytes.
uint32_t crc32c(const uint8_t* data, size_t size);
// CRC-32 of some bytes behind others whose CRC-32 is `crc`; 0: behind nothing.
uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size);

}  // namespace keyfold
