// Portkey's gateway serves plain HTTP on every address. Loaded before it, this makes the server that it asks Node for one of TLS 1.3
// with client certificates, on loopback: the connections cost it what they cost the others.
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import { syncBuiltinESMExports } from "node:module";

const pki = process.env.BENCH_PKI;
const read = (name) => fs.readFileSync(`${pki}/${name}`);
const tls = {
  key: read("server-key.pem"),
  cert: read("server-cert.pem"),
  ca: read("ca.pem"),
  requestCert: true,
  rejectUnauthorized: true,
  minVersion: "TLSv1.3",
};
http.createServer = (options, handler) => {
  const server = https.createServer({ ...options, ...tls }, handler);
  const listen = server.listen.bind(server);
  server.listen = (port, _host, ...rest) => listen(port, "127.0.0.1", ...rest);
  return server;
};
syncBuiltinESMExports();
