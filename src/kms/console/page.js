'use strict';
// Everything that comes from the server is put in as text, never as markup.
const $ = (id) => document.getElementById(id);
let login = null;
let next = null;
let current = null;

function problem(text) {
  $('problem').hidden = !text;
  $('problem').textContent = text || '';
}

async function get(path) {
  const answer = await fetch('/console/api/' + path);
  if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
  return answer.json();
}

function row(cells, arn) {
  const tr = document.createElement('tr');
  for (const cell of cells) {
    const td = document.createElement('td');
    if (cell && cell.text !== undefined) { td.textContent = cell.text; td.className = cell.kind; } else td.textContent = cell ?? '';
    tr.append(td);
  }
  if (arn) {
    tr.dataset.arn = arn;
    tr.tabIndex = 0;
    tr.onclick = () => open(arn).catch((e) => problem(e.message));
    tr.onkeydown = (e) => { if (e.key === 'Enter') tr.onclick(); };
  }
  return tr;
}

function rotation(r) {
  if (!r) return 'off';
  return 'every ' + r.days + ' days' + (r.next ? ', next ' + r.next : '');
}

async function keys(after) {
  const query = new URLSearchParams({ q: $('search').value, after: after || '' });
  const page = await get('keys?' + query);
  if (!after) $('key-rows').replaceChildren();
  for (const k of page.keys) {
    const state = { text: k.state, kind: k.state === 'Enabled' ? 'yes' : 'no' };
    $('key-rows').append(row([k.aliases.join(' '), k.id, state, k.spec, k.origin, rotation(k.rotation), String(k.grants)], k.arn));
  }
  next = page.next;
  $('more').hidden = !next;
  $('count').textContent = $('key-rows').children.length + ' of ' + page.total + ' keys';
}

async function open(arn) {
  const k = await get('key?' + new URLSearchParams({ arn }));
  current = k;
  $('key').hidden = false;
  $('key-name').textContent = k.arn;
  const facts = { Description: k.description, State: k.state, Spec: k.spec, Usage: k.usage, Origin: k.origin, Manager: k.manager,
    Created: k.created, Region: k.region, Versions: String(k.versions), Rotation: rotation(k.rotation), Aliases: k.aliases.join(' '),
    Tags: k.tags.join(', ') };
  $('key-facts').replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    const dt = document.createElement('dt'), dd = document.createElement('dd');
    dt.textContent = name;
    dd.textContent = value || '-';
    $('key-facts').append(dt, dd);
  }
  $('policy').value = k.policy;
  $('saved').textContent = '';
  $('verdict').textContent = '';
  if (!$('s-principal').value) $('s-principal').value = 'arn:aws:iam::' + k.account + ':user/NAME';
  $('grant-rows').replaceChildren();
  for (const g of k.grants_list) {
    $('grant-rows').append(row([g.id, g.grantee, g.operations.join(', '), g.constraints, g.retiring]));
  }
}

async function simulate() {
  const body = { arn: current.arn, policy: $('policy').value, principal: $('s-principal').value, action: $('s-action').value,
    encryption_context: JSON.parse($('s-context').value || '{}'), via_service: $('s-via').value, source_ip: $('s-ip').value,
    identity_policy: $('s-identity').value };
  const answer = await fetch('/console/api/simulate', { method: 'POST', body: JSON.stringify(body) });
  const text = await answer.text();
  const verdict = $('verdict');
  if (!answer.ok) { verdict.className = 'no'; verdict.textContent = text; return; }
  const found = JSON.parse(text);
  verdict.className = found.allowed ? 'yes' : 'no';
  verdict.textContent = (found.allowed ? 'allowed: ' : 'denied: ') + found.by;
}

async function audit() {
  const query = new URLSearchParams({ key: $('a-key').value, principal: $('a-principal').value, context: $('a-context').value,
    errors: $('a-errors').checked ? '1' : '' });
  const found = await get('audit?' + query);
  $('audit-rows').replaceChildren();
  for (const e of found.events) {
    const result = e.error ? { text: e.error, kind: 'no' } : { text: 'ok', kind: 'yes' };
    $('audit-rows').append(row([e.time, e.name, e.principal, e.key, e.context, e.source, result]));
  }
}

async function usage() {
  const found = await get('usage');
  const money = (n) => '$' + n.toFixed(2);
  $('usage-rows').replaceChildren();
  for (const m of found.months) {
    const classes = Object.entries(m.classes).map(([n, c]) => n + ' ' + c).join(', ');
    $('usage-rows').append(row([m.month, String(m.total), String(m.failed), classes, m.key_months.toFixed(2), money(m.kms), money(m.hsm)]));
  }
}

// AWS Signature Version 4, as every client of the KMS signs. The secret stays in this page.
const bytes = (text) => new TextEncoder().encode(text);
const hex = (buffer) => [...new Uint8Array(buffer)].map((b) => b.toString(16).padStart(2, '0')).join('');
const sha256 = async (text) => hex(await crypto.subtle.digest('SHA-256', bytes(text)));
async function hmac(key, text) {
  const k = await crypto.subtle.importKey('raw', key, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  return crypto.subtle.sign('HMAC', k, bytes(text));
}

async function call(action, region, input) {
  const body = JSON.stringify(input);
  const date = new Date().toISOString().replace(/[-:]|\.\d{3}/g, '');
  const scope = date.slice(0, 8) + '/' + region + '/kms/aws4_request';
  const headers = { 'content-type': 'application/x-amz-json-1.1', host: location.host, 'x-amz-date': date, 'x-amz-target': 'TrentService.' + action };
  const names = Object.keys(headers).sort();
  const canonical = ['POST', '/', '', ...names.map((n) => n + ':' + headers[n]), '', names.join(';'), await sha256(body)].join('\n');
  const text = ['AWS4-HMAC-SHA256', date, scope, await sha256(canonical)].join('\n');
  let key = bytes('AWS4' + login.secret);
  for (const part of scope.split('/')) key = await hmac(key, part);
  const signature = hex(await hmac(key, text));
  delete headers.host;
  headers.authorization = 'AWS4-HMAC-SHA256 Credential=' + login.access + '/' + scope + ', SignedHeaders=' + names.join(';') + ', Signature=' + signature;
  const answer = await fetch('/', { method: 'POST', headers, body });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error((found.__type || answer.status) + ': ' + (found.message || found.Message || ''));
  return found;
}

async function save() {
  if (!login) { $('saved').className = 'no'; $('saved').textContent = 'sign in first'; return; }
  await call('PutKeyPolicy', current.region, { KeyId: current.arn, PolicyName: 'default', Policy: $('policy').value });
  $('saved').className = 'yes';
  $('saved').textContent = 'saved';
}

const views = { keys: () => keys(), audit, usage };
let view = 'keys';
function show(name) {
  view = name;
  for (const v of Object.keys(views)) $(v).hidden = v !== name;
  for (const b of document.querySelectorAll('nav button')) b.className = b.dataset.view === name ? 'on' : '';
  refresh();
}
const refresh = () => views[view]().then(() => problem(''), (e) => problem(e.message));

for (const b of document.querySelectorAll('nav button')) b.onclick = () => show(b.dataset.view);
$('search').oninput = refresh;
$('more').onclick = () => keys(next).catch((e) => problem(e.message));
$('simulate').onsubmit = (e) => { e.preventDefault(); simulate().catch((f) => { $('verdict').className = 'no'; $('verdict').textContent = f.message; }); };
$('save').onclick = () => save().catch((e) => { $('saved').className = 'no'; $('saved').textContent = e.message; });
for (const id of ['a-key', 'a-principal', 'a-context', 'a-errors']) $(id).oninput = refresh;
$('login').onsubmit = (e) => {
  e.preventDefault();
  login = $('access').value ? { access: $('access').value, secret: $('secret').value } : null;
  $('secret').value = '';
  $('who').textContent = login ? 'signing as ' + login.access : 'not signed in: read only';
};
// Live: the audit log each two seconds, while it is looked at.
setInterval(() => { if (view === 'audit' && !document.hidden) refresh(); }, 2000);
refresh();
