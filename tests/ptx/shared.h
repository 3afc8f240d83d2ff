// A block's shared memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

constexpr unsigned kSeveral = ~0u;  // threads

// Of every byte it knows who touched it since the last barrier.
class Shared {
 public:
  explicit Shared(std::size_t bytes) : bytes_(bytes, 0xA5), touched_(bytes) {}

  // Of a whole access; what follows may be a part of it.
  void check(std::uint64_t place, unsigned bytes) const {
    if (place % bytes != 0) fail("shared memory is not aligned to its access");
    if (place + bytes > bytes_.size()) fail("there is no such shared memory");
  }

  void read(std::uint64_t place, void* to, unsigned bytes, unsigned thread) {
    for (std::uint64_t i = place; i < place + bytes; ++i) {
      Touched& at = touched_[i];
      if (at.written == 0) fail("shared memory is read that nobody has written");
      if (at.arriving) fail("shared memory is read before what was sent there has arrived");
      if (at.written == epoch_ && at.writer != thread) race("read", at.writer, thread);
      at.reader = at.read == epoch_ && at.reader != thread ? kSeveral : thread;
      at.read = epoch_;
    }
    std::memcpy(to, &bytes_[place], bytes);
  }

  // Threads may write the same at the same time, as Triton's that hold copies of a value do.
  void write(std::uint64_t place, const void* from, unsigned bytes, unsigned thread) {
    claim(place, static_cast<const unsigned char*>(from), bytes, thread);
    std::memcpy(&bytes_[place], from, bytes);
  }

  // What is sent arrives later: until then nobody may touch the place.
  void send(std::uint64_t place, unsigned bytes, unsigned thread) {
    claim(place, nullptr, bytes, thread);
  }
  void arrive(std::uint64_t place, const void* from, unsigned bytes, unsigned thread) {
    for (std::uint64_t i = place; i < place + bytes; ++i) touched_[i].arriving = false;
    write(place, from, bytes, thread);
  }

  void barrier() { ++epoch_; }
  // Which stretch between barriers this is, from 1.
  unsigned epoch() const { return epoch_; }

 private:
  struct Touched {
    unsigned written = 0, writer = 0, read = 0, reader = 0;
    bool arriving = false;
  };

  void claim(std::uint64_t place, const unsigned char* from, unsigned bytes, unsigned thread) {
    for (unsigned i = 0; i < bytes; ++i) {
      Touched& at = touched_[place + i];
      if (at.arriving) fail("shared memory is written while something is sent there");
      if (at.read == epoch_ && at.reader != thread) race("written", at.reader, thread);
      const bool another = at.written == epoch_ && at.writer != thread;
      if (another && (from == nullptr || from[i] != bytes_[place + i]))
        race("written", at.writer, thread);
      at.written = epoch_, at.writer = another ? kSeveral : thread, at.arriving = from == nullptr;
    }
  }
  [[noreturn]] static void race(const char* what, unsigned other, unsigned thread) {
    const std::string others = other == kSeveral ? "others" : "thread " + std::to_string(other);
    fail("thread " + std::to_string(thread) + " would have " + what +
         " shared memory that is used by " + others + ", without a barrier between");
  }

  std::vector<unsigned char> bytes_;
  std::vector<Touched> touched_;
  unsigned epoch_ = 1;
};

}  // namespace ptx
