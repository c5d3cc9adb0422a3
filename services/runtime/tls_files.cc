#include "services/runtime/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Bio = std::unique_ptr<BIO, FreeWith<BIO_free>>;
using Certificate = std::unique_ptr<X509, FreeWith<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;

// A flag and its file, as messages begin.
struct File {
  std::string flag;
  std::string path;

  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " ", path, ": ", what));
  }
};

absl::StatusOr<std::string> Read(const File& file) {
  std::ifstream in(file.path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) return file.Error(std::strerror(errno));
  if (text.empty()) return file.Error("is empty");
  return text;
}

Bio Open(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// Null where there is none.
Certificate FirstCertificate(const std::string& pem) {
  Certificate found(PEM_read_bio_X509(Open(pem).get(), nullptr, nullptr, {}));
  ERR_clear_error();
  return found;
}

// Null where there is none; asks nobody for a passphrase.
Key FirstKey(const std::string& pem) {
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };
  Key found(PEM_read_bio_PrivateKey(Open(pem).get(), nullptr, no_passphrase,
                                    nullptr));
  ERR_clear_error();
  return found;
}

absl::Time Expiry(const X509& certificate) {
  std::tm end = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &end) != 1) {
    return absl::InfinitePast();
  }
  return absl::FromTimeT(timegm(&end));
}

absl::Status ReadIdentity(const File& cert_file, const File& key_file,
                          TlsContents* contents) {
  ASSIGN_OR_RETURN(contents->cert, Read(cert_file));
  ASSIGN_OR_RETURN(contents->key, Read(key_file));
  const Certificate certificate = FirstCertificate(contents->cert);
  if (certificate == nullptr) {
    return cert_file.Error("holds no certificate in PEM");
  }
  const Key key = FirstKey(contents->key);
  if (key == nullptr) {
    return key_file.Error("holds no private key in PEM without a passphrase");
  }
  const bool belongs =
      X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!belongs) {
    return key_file.Error(absl::StrCat("is not the key of ", cert_file.flag,
                                       " ", cert_file.path));
  }
  contents->expiry = Expiry(*certificate);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsContents> ReadTlsFiles(const TlsFiles& files) {
  const File cert = {absl::StrCat(files.flag, "-cert"), files.cert};
  const File key = {absl::StrCat(files.flag, "-key"), files.key};
  const File ca = {absl::StrCat(files.flag, "-ca"), files.ca};
  if (cert.path.empty() != key.path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(cert.flag, " and ", key.flag, " go together"));
  }
  TlsContents contents;
  if (!cert.path.empty()) {
    RETURN_IF_ERROR(ReadIdentity(cert, key, &contents));
  }
  if (!ca.path.empty()) {
    ASSIGN_OR_RETURN(contents.ca, Read(ca));
    if (FirstCertificate(contents.ca) == nullptr) {
      return ca.Error("holds no certificate in PEM");
    }
  }
  return contents;
}

absl::Status CheckMeshTls(const TlsFiles& files) {
  const bool has_all =
      !files.cert.empty() && !files.key.empty() && !files.ca.empty();
  if (has_all || !files.any()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(files.flag, "-cert, ", files.flag, "-key and ", files.flag,
                   "-ca go together"));
}

}  // namespace expertmesh
