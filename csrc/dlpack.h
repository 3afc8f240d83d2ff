// The part of DLPack's C ABI (version 1) that describes a tensor, and how a framework hands out
// such descriptions of its Python tensors: https://dmlc.github.io/dlpack. Layout fixed by that
// standard.
#pragma once

#include <cstdint>

namespace fusedstep::dlpack {

enum TypeCode : std::uint8_t { kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

// What the capsule `__dlpack_c_exchange_api__` of a tensor type points to.
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  // Fills `out` with a view of a Python tensor; 0, or -1 with a Python exception set.
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

}  // namespace fusedstep::dlpack
