# Two stages: one that compiles the extension, one that serves as a user without rights.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY server server
COPY engine engine
COPY quant quant
COPY kvcache kvcache
COPY models models
RUN python3 -m venv /opt/puna && /opt/puna/bin/pip install --no-cache-dir .

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/puna /opt/puna
RUN useradd --create-home --uid 7862 puna
USER puna
WORKDIR /home/puna
ENV PATH=/opt/puna/bin:$PATH
EXPOSE 7862
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7862/health', timeout=2)"]
# Inside a container loopback would reach nobody; publish the port where you want it: docker run -p 127.0.0.1:7862:7862 puna
ENTRYPOINT ["puna"]
CMD ["serve", "--host", "0.0.0.0"]
