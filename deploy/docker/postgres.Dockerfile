# PostgreSQL 17 with pgvector 0.8, of Debian's own packages. The database is made on the first start, in PGDATA.
FROM debian:13-slim
RUN apt-get update \
 && apt-get install --no-install-recommends --yes postgresql-common locales-all \
 && sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
 && apt-get install --no-install-recommends --yes postgresql-17 postgresql-17-pgvector \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data \
 && install -d -o postgres -g postgres -m 0775 /var/run/postgresql
COPY deploy/docker/postgres-start /usr/local/bin/postgres-start
ENV PATH=/usr/lib/postgresql/17/bin:$PATH \
    PGDATA=/var/lib/postgresql/data/17
USER postgres
WORKDIR /var/lib/postgresql
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["pg_isready", "--quiet", "--host=127.0.0.1", "--username=embedding_studio", "--dbname=embedding_studio"]
CMD ["/usr/local/bin/postgres-start"]
