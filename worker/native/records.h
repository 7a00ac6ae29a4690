// Record sets of Kafka's format v2: read one batch's records, write a batch of records.
//
// Owns the bytes of records and of a batch's header. Knows nothing of Python, topics or producers:
// compression, the checksum and the producer's fields are the caller's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace keyfold {

// What one batch's records share.
struct BatchHead {
    int64_t base_offset;
    int64_t base_time_ms;
    int64_t append_time_ms;  // of the whole batch where the broker set the time; below 0: it did not
};

// The least that a record takes: its length, attributes, two deltas, two lengths, count of headers.
constexpr int64_t kLeastRecord = 7;

// Where one record's key and value stand: positions in the records section, length -1: null.
struct Span {
    int32_t key_at, key_length, value_at, value_length;
};

// Where to write what was read; each with room for as many rows as the batch has records.
struct Columns {
    int64_t* offsets;
    int64_t* times_ms;
    Span* spans;
};

// Reads `count` records, which must fill `size` bytes (below 2^31) exactly, and writes those from
// `from_offset` on. Returns how many these are, or -1 and in `why` what is wrong with the batch.
int64_t parse_records(const uint8_t* data, size_t size, int64_t count, BatchHead head,
                      int64_t from_offset, Columns columns, const char*& why);

// Bytes of a record to be written; length -1: null.
struct Text {
    const char* at;
    int64_t length;
};

struct Message {
    Text key, value;
};

struct Plan {
    size_t count;  // of messages that share one batch
    size_t size;   // of that batch in bytes
};

// The most messages from the first on in fewer bytes than `limit`; the first one in any case.
Plan plan_batch(const Message* messages, size_t count, int64_t limit);
// Writes a batch as planned, with every producer field -1 and the checksum 0.
void write_batch(uint8_t* out, const Message* messages, Plan plan, int64_t time_ms);

}  // namespace keyfold
