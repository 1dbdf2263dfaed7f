/**
 * An HTTP server around `kafka-sse`, the library that Wikimedia EventStreams is made of, for development and tests.
 *
 * `kafka-sse` does what matters: it resolves positions to offsets, consumes, and writes events and ids. This server
 * does what the route of the EventStreams service does before: it maps streams to topics, parses `since`, and counts
 * connections. It also plays the part of the proxies in front of the public service: it refuses library User-Agents
 * and cuts connections after a while.
 *
 * scripts/eventstreams installs the packages and starts it.
 */

'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');

const bunyan = require('bunyan');
const kafkaSse = require('kafka-sse');

const HOST = '127.0.0.1';
const STREAM_PATH = '/v2/stream/';

const DATA_CENTRES = ['eqiad', 'codfw'];

// What HTTP libraries send if nobody tells them otherwise. Wikimedia's User-Agent policy asks for a contact.
const LIBRARY_AGENT = /^(python-(requests|urllib3|httpx)|python-urllib|python\/|aiohttp|curl|wget|go-http-client|java\/|okhttp|axios|node)\b/i;

const { values: options } = parseArgs({
    options: {
        bootstrap: { type: 'string' },
        port: { type: 'string' },
        'tls-port': { type: 'string' },
        cert: { type: 'string' },
        key: { type: 'string' },
        streams: { type: 'string' },
        'max-connections': { type: 'string', default: '0' },
        'cut-seconds': { type: 'string', default: '0' },
    },
});
const maxConnections = Number(options['max-connections']);
const cutMilliseconds = Number(options['cut-seconds']) * 1000;

// Each stream is known by two names, such as recentchange and mediawiki.recentchange.
const TOPICS_OF = new Map(
    options.streams.split(',').flatMap((name) => {
        const topics = DATA_CENTRES.map((dataCentre) => `${dataCentre}.mediawiki.${name}`);
        return [[name, topics], [`mediawiki.${name}`, topics]];
    }),
);

const logger = bunyan.createLogger({ name: 'eventstreams', level: 'info' });

/** A refusal, which the client gets as JSON. */
class Refusal extends Error {
    constructor(status, type, title, detail) {
        super(detail);
        this.body = { status, type, title, detail };
    }
}

/** The topics of all requested streams, each once. */
function topicsOf(names) {
    const unknown = names.filter((name) => !TOPICS_OF.has(name));
    if (unknown.length > 0) {
        throw new Refusal(400, 'not_found', 'Stream Not Found', `Invalid streams: ${unknown.join(',')}`);
    }
    return [...new Set(names.flatMap((name) => TOPICS_OF.get(name)))];
}

/**
 * The time to start from, as `kafka-sse` gets it from the EventStreams service.
 *
 * The service hands a number of milliseconds on as the string that it found in the URL. The Kafka client reads a
 * string as 0, so the client gets all of history. Only what is not a number becomes one, by parsing it as a date.
 */
function startOf(since) {
    if (since === null) {
        return undefined;
    }
    if (!Number.isNaN(Number(since))) {
        return since;
    }
    const milliseconds = Date.parse(since);
    if (Number.isNaN(milliseconds)) {
        throw new Refusal(
            400, 'invalid_timestamp', 'Invalid timestamp',
            `since is neither a number of milliseconds nor a date: '${since}'`,
        );
    }
    return milliseconds;
}

const openConnections = new Map();

/** Counts a connection of a client until its response ends, or refuses it. */
function admit(client, response) {
    const open = openConnections.get(client) || 0;
    if (maxConnections > 0 && open >= maxConnections) {
        throw new Refusal(
            429, 'too_many_requests', 'Too Many Requests',
            `This server allows ${maxConnections} connection(s) at a time from one address.`,
        );
    }
    openConnections.set(client, open + 1);
    response.once('close', () => openConnections.set(client, openConnections.get(client) - 1));
}

/** Parses an event and tells where it lies in Kafka, as the EventStreams service does. */
function deserialize(record) {
    const message = JSON.parse(record.value.toString());
    const { topic, partition, offset } = record;
    message.meta = Object.assign(message.meta || {}, { topic, partition, offset });
    return Object.assign(record, { message });
}

function stream(request, response, url) {
    const names = decodeURIComponent(url.pathname.slice(STREAM_PATH.length)).split(',');
    const topics = topicsOf(names);
    const start = startOf(url.searchParams.get('since'));
    admit(request.headers['x-client-ip'] || request.socket.remoteAddress, response);
    if (cutMilliseconds > 0) {
        // No final chunk: the client sees its connection break, perhaps in the middle of an event.
        const cut = setTimeout(() => request.socket.destroy(), cutMilliseconds);
        response.once('close', () => clearTimeout(cut));
    }
    kafkaSse(
        request,
        response,
        topics,
        {
            allowedTopics: topics,
            useTimestampForId: true,
            deserializer: deserialize,
            kafkaConfig: { 'metadata.broker.list': options.bootstrap },
            logger,
        },
        start,
    );
}

function refuse(request, response, refusal) {
    const body = { ...refusal.body, method: request.method, uri: request.url };
    response.writeHead(body.status, { 'content-type': 'application/json; charset=utf-8' });
    response.end(JSON.stringify(body));
}

function answer(request, response) {
    const agent = request.headers['user-agent'] || '';
    if (agent === '' || LIBRARY_AGENT.test(agent)) {
        response.writeHead(403, { 'content-type': 'text/plain; charset=utf-8' });
        response.end('Please set a User-Agent that names your program and a contact.\n');
        return;
    }
    try {
        const url = new URL(request.url, `http://${HOST}`);
        if (request.method !== 'GET' || !url.pathname.startsWith(STREAM_PATH)) {
            throw new Refusal(404, 'not_found', 'Not found', `Not found: ${url.pathname}`);
        }
        stream(request, response, url);
    } catch (error) {
        if (error instanceof Refusal) {
            refuse(request, response, error);
        } else {
            // A URL that cannot be decoded.
            refuse(request, response, new Refusal(400, 'bad_request', 'Bad Request', error.message));
        }
    }
}

http.createServer(answer).listen(Number(options.port), HOST);
https
    .createServer({ cert: fs.readFileSync(options.cert), key: fs.readFileSync(options.key) }, answer)
    .listen(Number(options['tls-port']), HOST);
