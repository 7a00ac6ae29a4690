#include "records.h"

#include <cstring>

namespace keyfold {

namespace {

// -- reading -------------------------------------------------------------------------------------

// Reads from a part of the batch and never beyond its end.
class Reader {
  public:
    Reader(const uint8_t* at, const uint8_t* end) : at_(at), end_(end) {}

    const uint8_t* at() const { return at_; }
    size_t left() const { return static_cast<size_t>(end_ - at_); }

    // A zigzag varint of at most 64 bits.
    bool varint(int64_t& value) {
        if (at_ == end_) return false;
        uint64_t bits = *at_++;
        if (bits & 0x80) {
            bits &= 0x7f;
            for (int shift = 7;; shift += 7) {
                if (at_ == end_) return false;
                const uint64_t byte = *at_++;
                bits |= (byte & 0x7f) << shift;
                if (shift == 63 && byte > 1) return false;
                if (!(byte & 0x80)) break;
            }
        }
        value = static_cast<int64_t>(bits >> 1) ^ -static_cast<int64_t>(bits & 1);
        return true;
    }

    // A length, -1 for null, and as many bytes, which are passed over.
    bool bytes(const uint8_t*& at, int64_t& length) {
        if (!varint(length)) return false;
        at = at_;
        if (length < 0) {
            length = -1;
            return true;
        }
        if (static_cast<uint64_t>(length) > left()) return false;
        at_ += length;
        return true;
    }

  private:
    const uint8_t* at_;
    const uint8_t* end_;
};

// The worker has no use for headers. Their names may be any bytes: Kafka takes them so.
bool pass_headers(Reader& record) {
    int64_t headers, length;
    const uint8_t* at;
    if (!record.varint(headers) || headers < 0) return false;
    for (; headers > 0; --headers) {  // each takes two bytes at least, so this ends
        if (!record.bytes(at, length) || length < 0) return false;
        if (!record.bytes(at, length)) return false;
    }
    return true;
}

struct Record {
    int64_t time_delta, offset_delta, key_length, value_length;
    const uint8_t *key, *value;
};

bool read_record(Reader& batch, Record& record) {
    int64_t length, attributes;
    if (!batch.varint(length) || length < 0 || static_cast<uint64_t>(length) > batch.left())
        return false;
    const uint8_t* end = batch.at() + length;
    Reader own(batch.at(), end);
    if (!own.varint(attributes) || !own.varint(record.time_delta) ||
        !own.varint(record.offset_delta) || !own.bytes(record.key, record.key_length) ||
        !own.bytes(record.value, record.value_length) || !pass_headers(own) || own.left())
        return false;
    batch = Reader(end, end + (batch.left() - static_cast<size_t>(length)));
    return true;
}

}  // namespace

int64_t parse_records(const uint8_t* data, size_t size, int64_t count, BatchHead head,
                      int64_t from_offset, Columns columns, const char*& why) {
    Reader batch(data, data + size);
    Record record;
    int64_t row = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (!read_record(batch, record)) {
            why = "a record is malformed";
            return -1;
        }
        int64_t offset, time_ms = head.append_time_ms;
        if (__builtin_add_overflow(head.base_offset, record.offset_delta, &offset) ||
            (time_ms < 0 &&
             __builtin_add_overflow(head.base_time_ms, record.time_delta, &time_ms))) {
            why = "a record's offset or time is beyond 64 bits";
            return -1;
        }
        if (offset < from_offset) continue;
        columns.offsets[row] = offset;
        columns.times_ms[row] = time_ms;
        columns.spans[row] = {static_cast<int32_t>(record.key - data),
                              static_cast<int32_t>(record.key_length),
                              static_cast<int32_t>(record.value - data),
                              static_cast<int32_t>(record.value_length)};
        ++row;
    }
    if (batch.left()) {
        why = "bytes follow its last record";
        return -1;
    }
    return row;
}

// -- writing -------------------------------------------------------------------------------------

namespace {

constexpr size_t kHeadSize = 61;
constexpr size_t kAfterLength = 12;  // where a batch's length counts from

uint64_t zigzag(int64_t value) {
    return (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63);
}

size_t varint_size(int64_t value) {
    size_t size = 1;
    for (uint64_t bits = zigzag(value); bits >= 0x80; bits >>= 7) ++size;
    return size;
}

size_t text_size(Text text) {
    return varint_size(text.length) + (text.length < 0 ? 0 : static_cast<size_t>(text.length));
}

// All but the record's own length: attributes, time delta and count of headers are a zero byte each.
size_t body_size(const Message& message, size_t number) {
    return 3 + varint_size(static_cast<int64_t>(number)) + text_size(message.key) +
           text_size(message.value);
}

class Writer {
  public:
    explicit Writer(uint8_t* at) : at_(at) {}

    void byte(uint8_t value) { *at_++ = value; }
    void varint(int64_t value) {
        uint64_t bits = zigzag(value);
        for (; bits >= 0x80; bits >>= 7) byte(static_cast<uint8_t>(bits | 0x80));
        byte(static_cast<uint8_t>(bits));
    }
    void text(Text text) {
        varint(text.length);
        if (text.length <= 0) return;
        std::memcpy(at_, text.at, static_cast<size_t>(text.length));
        at_ += text.length;
    }
    // The `size` low bytes of a number, the highest first.
    void number(int64_t value, int size) {
        for (int shift = 8 * (size - 1); shift >= 0; shift -= 8)
            byte(static_cast<uint8_t>(static_cast<uint64_t>(value) >> shift));
    }

  private:
    uint8_t* at_;
};

}  // namespace

Plan plan_batch(const Message* messages, size_t count, int64_t limit) {
    const size_t room = limit < 0 ? 0 : static_cast<size_t>(limit);
    Plan plan{0, kHeadSize};
    for (; plan.count < count; ++plan.count) {
        const size_t body = body_size(messages[plan.count], plan.count);
        const size_t size = plan.size + varint_size(static_cast<int64_t>(body)) + body;
        if (plan.count && size >= room) break;  // below, not at: aiokafka's builder in C does so
        plan.size = size;
    }
    return plan;
}

void write_batch(uint8_t* out, const Message* messages, Plan plan, int64_t time_ms) {
    Writer writer(out);
    writer.number(0, 8);  // base offset: the broker sets it
    writer.number(static_cast<int64_t>(plan.size - kAfterLength), 4);
    writer.number(-1, 4);  // leader epoch
    writer.number(2, 1);   // format
    writer.number(0, 4);   // checksum
    writer.number(0, 2);   // attributes
    writer.number(static_cast<int64_t>(plan.count) - 1, 4);  // last offset delta
    writer.number(time_ms, 8);                               // first time
    writer.number(time_ms, 8);                               // last time
    writer.number(-1, 8);                                    // producer id
    writer.number(-1, 2);                                    // producer epoch
    writer.number(-1, 4);                                    // first sequence number
    writer.number(static_cast<int64_t>(plan.count), 4);
    for (size_t i = 0; i < plan.count; ++i) {
        writer.varint(static_cast<int64_t>(body_size(messages[i], i)));
        writer.byte(0);    // attributes
        writer.varint(0);  // time delta
        writer.varint(static_cast<int64_t>(i));
        writer.text(messages[i].key);
        writer.text(messages[i].value);
        writer.varint(0);  // headers
    }
}

}  // namespace keyfold
