// Numbers of flat JSON objects: the members of given names as doubles, many records at a time.
//
// Owns what counts as plain: whatever it accepts, the decoder in Python accepts with the same
// doubles; in any doubt it declines, and Python reads the record. Knows nothing of Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace keyfold {

struct Cursor;

// Reads records of one call; it remembers the order of the members from one record to the next.
class NumberReader {
  public:
    // The names must outlive the reader, and so must every record given to it.
    explicit NumberReader(const std::vector<std::string_view>& names);

    // Whether no name is there twice.
    bool is_distinct() const { return columns_.size() == seen_.size(); }
    // Reads one record's numbers in the order of the names; false: it declines.
    bool read(const uint8_t* at, const uint8_t* end, double* row);

  private:
    static constexpr int kOther = -1;

    // The name that stood at some place of the last record.
    struct Known {
        std::string_view quoted;
        int column;  // or kOther: a member that nobody wants
    };

    bool name(Cursor& cursor, size_t place, int& column);

    std::unordered_map<std::string_view, int> columns_;
    std::vector<Known> order_;
    std::vector<uint64_t> seen_;  // by column: the last record that had it
    uint64_t record_ = 0;
};

}  // namespace keyfold
