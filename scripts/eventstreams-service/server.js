'use strict';

/*
 * Wikimedia's own SSE layer (npm kafka-sse) behind a front that does what the route of the EventStreams
 * service does: it checks the request, and hands streams and `since` on. scripts/eventstreams starts it.
 *
 * It prints one line of JSON with its ports when it answers. SIGUSR2 cuts all connections; SIGTERM ends it, and
 * all connections with it.
 */

const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');
const bunyan = require('bunyan');
const kafkaSse = require('kafka-sse');

const HOST = '127.0.0.1';
const STREAM_PATH = '/v2/stream/';
const DATA_CENTRES = ['eqiad', 'codfw'];
const RETRY_AFTER_SECONDS = 1;

// Policy wants an agent that describes itself, and leaves a way to reach its owner.
const LIBRARY_AGENT = /^(python|curl|wget|go-http-client|java\/|okhttp|axios|node|undici|aiohttp|ruby|php)/i;
const CONTACT = /https?:\/\/\S|\S@\S/;

const { values: options } = parseArgs({
    options: {
        bootstrap: { type: 'string', default: 'localhost:9092' },
        port: { type: 'string', default: '8092' },
        'tls-port': { type: 'string', default: '8093' },
        cert: { type: 'string' },
        key: { type: 'string' },
        streams: { type: 'string', default: 'recentchange,page-create' },
        'max-connections': { type: 'string', default: '0' },
        'cut-seconds': { type: 'string', default: '0' },
    },
});
const streams = options.streams.split(',');
const maxConnections = Number(options['max-connections']);
const cutMs = Number(options['cut-seconds']) * 1000;

const logger = bunyan.createLogger({ name: 'eventstreams', level: process.env.LOG_LEVEL || 'warn' });
const openConnections = new Map();
const sockets = new Set();

class Refusal extends Error {
    constructor(status, type, title, detail) {
        super(detail);
        Object.assign(this, { status, type, title, detail });
    }
}

/** Writes the refusal as the service's JSON. */
function refuse(req, res, { status, type, title, detail }) {
    const headers = { 'content-type': 'application/json; charset=utf-8' };
    if (status === 429) {
        headers['retry-after'] = RETRY_AFTER_SECONDS;
    }
    res.writeHead(status, headers);
    res.end(JSON.stringify({ status, type, title, detail, method: req.method, uri: req.url }));
}

/** Throws a 403 for an agent that is missing, or a library's default. */
function checkUserAgent(agent = '') {
    if (!agent.trim() || (LIBRARY_AGENT.test(agent.trim()) && !CONTACT.test(agent))) {
        throw new Refusal(403, 'forbidden', 'Forbidden', 'Please set a User-Agent with contact information.');
    }
}

function bareName(stream) {
    return stream.replace(/^mediawiki\./, '');
}

/** Returns the topics behind comma-separated streams, each once; mediawiki.NAME is another name of NAME. */
function topicsOf(joined) {
    const asked = joined.split(',');
    const unknown = asked.filter((stream) => !streams.includes(bareName(stream)));
    if (unknown.length > 0) {
        throw new Refusal(400, 'not_found', 'Stream Not Found', `Invalid streams: ${unknown.join(',')}`);
    }
    const topics = asked.flatMap((stream) =>
        DATA_CENTRES.map((centre) => `${centre}.mediawiki.${bareName(stream)}`),
    );
    return [...new Set(topics)];
}

/**
 * Returns what the service hands to kafka-sse as the time to start at.
 *
 * A number of milliseconds stays a string, as in the service. The Kafka client takes a string for 0, so that
 * all of history is sent.
 */
function parseSince(since) {
    if (!since || !Number.isNaN(Number(since))) {
        return since || undefined;
    }
    const ms = Date.parse(since);
    if (Number.isNaN(ms)) {
        throw new Refusal(
            400, 'invalid_timestamp', 'Invalid timestamp',
            `since is neither a number of milliseconds nor a date: '${since}'`,
        );
    }
    return ms;
}

/** Counts a connection until it closes; throws a 429 for one too many of an address. */
function admit(req, res) {
    const address = req.socket.remoteAddress;
    const open = openConnections.get(address) || 0;
    if (maxConnections && open >= maxConnections) {
        throw new Refusal(
            429, 'too_many_requests', 'Too Many Requests', `More than ${maxConnections} connections from ${address}`,
        );
    }
    openConnections.set(address, open + 1);
    res.once('close', () => openConnections.set(address, openConnections.get(address) - 1));
}

/** Adds to an event where it lies in Kafka, as the service does. */
function deserialize(message) {
    const { topic, partition, offset } = message;
    const event = JSON.parse(message.value.toString());
    event.meta = { ...event.meta, topic, partition, offset };
    return Object.assign(message, { message: event });
}

function serve(req, res) {
    const url = new URL(req.url, 'http://localhost');
    if (!url.pathname.startsWith(STREAM_PATH)) {
        refuse(req, res, { status: 404, type: 'not_found', title: 'Not Found', detail: `No such path: ${url.pathname}` });
        return;
    }
    let topics;
    let since;
    try {
        checkUserAgent(req.headers['user-agent']);
        admit(req, res);
        topics = topicsOf(decodeURIComponent(url.pathname.slice(STREAM_PATH.length)));
        since = parseSince(url.searchParams.get('since'));
    } catch (error) {
        if (!(error instanceof Refusal)) {
            throw error;
        }
        refuse(req, res, error);
        return;
    }
    if (cutMs) {
        // By the socket: the response may be in the middle of an event.
        const cut = setTimeout(() => req.socket.destroy(), cutMs);
        res.once('close', () => clearTimeout(cut));
    }
    kafkaSse(req, res, topics, {
        kafkaConfig: { 'metadata.broker.list': options.bootstrap },
        allowedTopics: topics,
        useTimestampForId: true,
        deserializer: deserialize,
        logger,
    }, since);
}

function listen(server, port) {
    server.on('connection', (socket) => {
        sockets.add(socket);
        socket.once('close', () => sockets.delete(socket));
    });
    return new Promise((resolve, reject) => {
        server.once('error', reject);
        server.listen(Number(port), HOST, () => resolve(server.address().port));
    });
}

async function main() {
    const listening = { port: await listen(http.createServer(serve), options.port) };
    if (options.cert) {
        const tls = { cert: fs.readFileSync(options.cert), key: fs.readFileSync(options.key) };
        listening.tlsPort = await listen(https.createServer(tls, serve), options['tls-port']);
    }
    console.log(JSON.stringify(listening));
}

process.on('SIGUSR2', () => sockets.forEach((socket) => socket.destroy()));
process.on('SIGTERM', () => process.exit(0));
main().catch((error) => {
    console.error(error.message);
    process.exit(1);
});
