# The expert service with its CUDA backend, from a full bundle, which is the
# build's context:
#
#     deploy/bundle OUT
#     docker build -f deploy/images/expert-cuda.Dockerfile -t expertmesh-expert-cuda:0.1.0 OUT
#
# The driver's libraries come from the host, by the NVIDIA Container Toolkit.
# Nothing is installed or compiled here; the bundle fits Debian 12's glibc.
FROM debian:bookworm-slim

LABEL org.opencontainers.image.title="expertmesh-expert-cuda" \
      org.opencontainers.image.description="Expert service of Expertmesh for CUDA devices" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY bin/expertmesh-expert /opt/expertmesh/bin/
COPY lib/ /opt/expertmesh/lib/
COPY LICENSE bundle.txt /opt/expertmesh/

# What the host's toolkit is to bring: CUDA, and NVML for metrics.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 50052
ENTRYPOINT ["/opt/expertmesh/bin/expertmesh-expert"]
