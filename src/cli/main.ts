/** The command `imagefs`: finds the subcommand, turns what is thrown into one line and an exit code. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { BlockError, describeHostError, isSystemError } from '../errors';
import { type Command, UsageError } from './command';
import { command as check } from './commands/check';
import { command as create } from './commands/create';
import { command as info } from './commands/info';
import { command as list } from './commands/list';
import { command as map } from './commands/map';
import { command as mount } from './commands/mount';
import { command as snapshot } from './commands/snapshot';
import { command as umount } from './commands/umount';
import { flushOutput, OutputClosed, print, printError } from './output';

/** Every subcommand, in the order of the help. */
const COMMANDS: readonly Command[] = [mount, umount, list, create, info, check, map, snapshot];

/** Wrong words before a subcommand is known. */
const EXIT_USAGE = 1;
const EXIT_ERROR = 1;
/** What a shell shows for a program that SIGPIPE ended. */
const EXIT_OUTPUT_CLOSED = 141;

/** Runs one command line. @returns the exit code */
export async function main(args: string[]): Promise<number> {
  const debug = optionWords(args).includes('--debug');
  let usageExit = EXIT_USAGE;
  try {
    // `imagefs --debug info x` as well as `imagefs info --debug x`.
    const [name, ...rest] = args[0] === '--debug' ? args.slice(1) : args;
    if (name === undefined) throw new UsageError('Not enough arguments');
    if (answerGeneral(name, rest)) return finished(0);
    const command = commandNamed(name);
    usageExit = command.usageExit ?? 2;
    if (optionWords(rest).includes('--help') || rest[0] === '-h') {
      print(withNewline(command.help));
      return finished(0);
    }
    return finished(await command.run(rest));
  } catch (error) {
    return reported(error, debug, usageExit, args[0]);
  }
}

/** For `bin/imagefs`. */
export function runMain(args: string[]): void {
  main(args).then(
    (code) => {
      // Nothing is pending: output is written synchronously, and a command that is done is done.
      process.exit(code);
    },
    (error: unknown) => {
      // Only a failure of the reporting itself comes here.
      process.exit(error instanceof OutputClosed ? EXIT_OUTPUT_CLOSED : EXIT_ERROR);
    },
  );
}

/** `imagefs --help`, `help [CMD]`, `--version`. @returns whether it was one of them */
function answerGeneral(name: string, rest: string[]): boolean {
  if (name === '--version' || name === '-V') {
    print(`imagefs ${version()}\n`);
    return true;
  }
  if (name === '--help' || name === '-h' || (name === 'help' && rest.length === 0)) {
    print(generalHelp());
    return true;
  }
  if (name !== 'help') return false;
  const [topic = '', unexpected] = rest;
  if (unexpected !== undefined) throw new UsageError(`Unexpected argument: ${unexpected}`);
  print(withNewline(commandNamed(topic).help));
  return true;
}

function commandNamed(name: string): Command {
  const found = COMMANDS.find((command) => command.name === name);
  if (found !== undefined) return found;
  throw new UsageError(name.startsWith('-') ? `unrecognized option '${name}'` : `Command not found: ${name}`);
}

/** Output that could not be written is an error too. */
function finished(code: number): number {
  flushOutput();
  return code;
}

/** One line, or none when nobody can read it. */
function reported(error: unknown, debug: boolean, usageExit: number, name: string | undefined): number {
  if (error instanceof OutputClosed) return EXIT_OUTPUT_CLOSED;
  const known = COMMANDS.some((command) => command.name === name);
  if (error instanceof UsageError) {
    printError(`imagefs: ${error.message} (try 'imagefs ${known ? `${name} ` : ''}--help')`);
  } else if (error instanceof BlockError) printError(`imagefs: ${error.message}`);
  else if (isSystemError(error)) printError(`imagefs: ${describeHostError(error)}`);
  else printError(`imagefs: internal error: ${error instanceof Error ? error.message : String(error)}`);
  if (debug && error instanceof Error) for (const line of stackOf(error).split('\n')) printError(line);
  return error instanceof UsageError ? usageExit : EXIT_ERROR;
}

function stackOf(error: Error): string {
  const stack = error.stack ?? String(error);
  return error.cause instanceof Error ? `${stack}\ncaused by: ${stackOf(error.cause)}` : stack;
}

/** The arguments before `--`. */
function optionWords(args: string[]): string[] {
  const end = args.indexOf('--');
  return end === -1 ? args : args.slice(0, end);
}

function generalHelp(): string {
  const width = Math.max(...COMMANDS.map((command) => command.name.length));
  const lines = COMMANDS.map((command) => `  ${command.name.padEnd(width)}  ${command.summary}`);
  return `Usage: imagefs COMMAND [OPTION]... [ARGUMENT]...

Mounts disk images of virtual machines as plain files, and makes, shows and checks them.

${lines.join('\n')}

  imagefs help COMMAND   what a command does, its options, exit codes and an example
  imagefs --version      the version

Add --debug to any command to see where an error comes from. Exit code: 0 done, otherwise see the command.
`;
}

function withNewline(text: string): string {
  return text.endsWith('\n') ? text : `${text}\n`;
}

function version(): string {
  const file = path.join(__dirname, '..', '..', '..', 'package.json');
  const fields: unknown = JSON.parse(readFileSync(file, 'utf8'));
  return typeof fields === 'object' && fields !== null && 'version' in fields ? String(fields.version) : 'unknown';
}
