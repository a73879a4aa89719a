# Consul, as `make consul` builds it, for those who have no other image of it.
FROM scratch
ADD rootfs.tar /
VOLUME /consul/data
ENTRYPOINT ["/bin/consul"]
