/**
 * Runs a batch of cases in a process of its own, which the parent may kill. Descriptor 3 tells what goes on, a line of JSON
 * each; at the end it waits for its standard input to end, so that the parent can still measure it.
 *
 *     node worker.js SEED DIRECTORY KIND:INDEX...
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { CaseRunner } from './case';
import type { Finding } from './exercise';
import type { Kind } from './seeds';

/** From the worker to its parent. */
export type Message =
  | { kind: 'ready' }
  | { kind: 'case'; name: string }
  | { kind: 'finding'; name: string; story: string[]; finding: Finding }
  | { kind: 'outcome'; name: string; opened: string; check: string; ms: number }
  | { kind: 'end' };

const REPORTS = 3;

function tell(message: Message): void {
  fs.writeSync(REPORTS, `${JSON.stringify(message)}\n`);
}

/** qemu-img finds nothing wrong, and we refuse the image or count errors: worth a look. */
function beside(image: string, check: string, opened: string): Finding[] {
  const { status } = spawnSync('qemu-img', ['check', image], { stdio: 'ignore', timeout: 10_000 });
  if (status !== 0 || (check === '0' && opened === 'done')) return [];
  return [{ step: 'qemu-img', problem: `check says clean; ours says ${check}, open ${opened}` }];
}

function main([seed, directory, ...names]: string[]): void {
  const runner = new CaseRunner(directory);
  tell({ kind: 'ready' });
  for (const name of names) {
    tell({ kind: 'case', name });
    const [kind, index] = name.split(':');
    const wanted = { kind: kind as Kind, seed: Number(seed), index: Number(index) };
    const begun = process.cpuUsage();
    const { findings, story, opened, check } = runner.run(wanted);
    const { user, system } = process.cpuUsage(begun);
    tell({ kind: 'outcome', name, opened, check, ms: (user + system) / 1000 });
    if (process.env.IMAGEFS_FUZZ_QEMU === '1') {
      runner.run(wanted, true);
      findings.push(...beside(path.join(directory, 'images', 'image'), check, opened));
    }
    for (const finding of findings) tell({ kind: 'finding', name, story, finding });
  }
  tell({ kind: 'end' });
  fs.readSync(0, new Uint8Array(1));
}

main(process.argv.slice(2));
