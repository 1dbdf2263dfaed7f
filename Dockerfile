# docker build . -t pleiades:0.1.0
#
# Another base, such as a mirror's or a hardened one, must have Python 3.11 or later with venv and pip:
#   docker build . --build-arg BASE=registry.example.org/python:3.13-slim -t pleiades:0.1.0
# A tag moves. To build on the same base again, name it by its digest (README, "In a container").
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY setup.cfg pyproject.toml README.md ./
COPY requirements requirements
COPY pleiades pleiades
# Everything as wheels, in the versions that were tested; `simulate` is for `pleiades simulate --tls`, `socks` for a SOCKS proxy.
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt \
    && /build/bin/pip wheel --no-cache-dir --wheel-dir /wheels --require-hashes --requirement requirements/run.txt \
    && /build/bin/pip wheel --no-cache-dir --wheel-dir /wheels --no-deps --no-build-isolation .

FROM ${BASE}
# Nothing but wheels gets in: no sources, no compiler, and of pip only what the base has.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,from=build,source=/build,target=/build \
    python3 -m venv --without-pip /opt/pleiades \
    && /build/bin/pip --python /opt/pleiades/bin/python install --no-cache-dir --no-index /wheels/*.whl

# Whoever mounts a volume gives it to this user; no name is needed.
RUN mkdir /data && chown 65532:65532 /data
USER 65532:65532
# The events' directory is ./events by default. /data and /tmp are all that is written to: with both on
# volumes or tmpfs the root file system can be read-only.
WORKDIR /data
ENV PATH=/opt/pleiades/bin:$PATH
# The health check would otherwise import modules from the volume.
ENV PYTHONSAFEPATH=1
# For a replay, too, whose own default is any free port; and for the health check. To change it, set this, not --metricsPort.
ENV PLEIADES_METRICS_PORT=9000
EXPOSE 9000
STOPSIGNAL SIGTERM
ENTRYPOINT ["pleiades"]
CMD ["help"]

# All processes live and beat. Readiness is no part of it: an upstream that is away is no reason to restart.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PLEIADES_METRICS_PORT'] + '/healthz', timeout=4)"]

ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pleiades" \
    org.opencontainers.image.description="Relays Wikimedia EventStreams into files or Kafka: every event once, in order" \
    org.opencontainers.image.url="https://github.com/pleiades-relay/pleiades" \
    org.opencontainers.image.source="https://github.com/pleiades-relay/pleiades" \
    org.opencontainers.image.base.name="${BASE}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
