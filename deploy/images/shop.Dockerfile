# The programs of the demo's shop, which know nothing of the mesh.
FROM scratch
ADD rootfs.tar /
USER 1000:1000
ENTRYPOINT ["/shop"]
