#include "expert_service/weights/convert.h"

#include <cstdint>
#include <cstring>

#include "absl/status/status.h"

namespace expertmesh::expert {
namespace {

// Tensors of a mapped file may be unaligned.
template <typename T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

template <DType kSource>
float LoadF32(const std::byte* at) {
  if constexpr (kSource == DType::kF32) {
    return Load<float>(at);
  } else if constexpr (kSource == DType::kBF16) {
    return ToF32(Load<BF16>(at));
  } else {
    return F16ToF32(Load<uint16_t>(at));
  }
}

template <DType kSource>
void ConvertAll(const TensorView& source, DType dtype, Buffer& target) {
  const int64_t count = source.num_elements();
  const std::byte* at = source.data;
  constexpr size_t kStep = DTypeBytes(kSource);
  if (dtype == DType::kF32) {
    for (int64_t i = 0; i < count; ++i, at += kStep) {
      target.as<float>()[i] = LoadF32<kSource>(at);
    }
  } else {
    for (int64_t i = 0; i < count; ++i, at += kStep) {
      target.as<BF16>()[i] = ToBF16(LoadF32<kSource>(at));
    }
  }
}

}  // namespace

absl::StatusOr<Buffer> ConvertElements(const TensorView& source, DType dtype) {
  if (dtype == DType::kF16) {
    return absl::InvalidArgumentError("weights cannot be converted to f16");
  }
  Buffer target(source.num_elements() * DTypeBytes(dtype));
  switch (source.dtype) {
    case DType::kF32:
      ConvertAll<DType::kF32>(source, dtype, target);
      break;
    case DType::kBF16:
      ConvertAll<DType::kBF16>(source, dtype, target);
      break;
    case DType::kF16:
      ConvertAll<DType::kF16>(source, dtype, target);
      break;
  }
  return target;
}

}  // namespace expertmesh::expert
