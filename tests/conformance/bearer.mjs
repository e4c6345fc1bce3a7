// The conformance tool sends no token of its own: every request of this process gets the one in ROLECALL_TOKEN.
import http from "node:http";
import { Agent, setGlobalDispatcher } from "undici";

const authorization = `Bearer ${process.env.ROLECALL_TOKEN}`;

const bearing = (dispatch) => (options, handler) => {
  const given = options.headers ?? {};
  const headers = Array.isArray(given) ? [...given, "authorization", authorization] : { ...given, authorization };
  return dispatch({ ...options, headers }, handler);
};
setGlobalDispatcher(new Agent().compose(bearing));

const plain = http.request;
http.request = (...given) => {
  const request = plain(...given);
  request.setHeader("authorization", authorization);
  return request;
};
