# parrel: control plane, sidecar and everything else. `make images` builds it; nothing is downloaded.
FROM scratch
ADD rootfs.tar /
ENTRYPOINT ["/parrel"]
