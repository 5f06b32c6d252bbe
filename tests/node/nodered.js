// The settings of Node-RED: no editor, nothing beyond loopback, nobody called.
module.exports = {
  uiHost: "127.0.0.1",
  httpAdminRoot: false,
  telemetry: { enabled: false, updateNotification: false },
  externalModules: { autoInstall: false, palette: { allowInstall: false }, modules: { allowInstall: false } },
  logging: { console: { level: "info" } },
};
process.stdin.on("end", () => process.exit()).resume();
